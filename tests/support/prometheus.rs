//! A private Prometheus with the rules that are shipped.
//!
//! Needs Debian's `prometheus`. It watches whatever it is told to, here or on other hosts, and asks nothing of them but
//! their metrics.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::ats::free_port;
use crate::farm::wait_for;
use crate::watcher::{Folder, Process};

/// The folder of rules and examples that are shipped.
pub fn shipped() -> PathBuf {
    crate::tree().join("etc/prometheus")
}

/// A node that is scraped.
#[derive(Clone, Debug)]
pub struct ScrapeTarget {
    /// Address and port of `metrics.listen`; it becomes the label `instance`.
    pub address: String,
    /// The label `farm`.
    pub farm: String,
    /// The label `pod`.
    pub pod: String,
}

/// How Prometheus watches.
#[derive(Clone, Debug)]
pub struct Watch {
    /// What it scrapes, as the job `resumed`.
    pub targets: Vec<ScrapeTarget>,
    /// How often it scrapes, and evaluates the rules.
    pub every: Duration,
    /// Each `for` of the shipped rules is divided by this. Their windows stay: a rate over five minutes is one over
    /// what there is, as long as there is less.
    pub divide_for_by: u32,
}

impl Watch {
    /// Once a second, and ten times as impatient as shipped: still slower than a change of leader.
    pub fn impatiently(targets: Vec<ScrapeTarget>) -> Self {
        Self { targets, every: Duration::from_secs(1), divide_for_by: 10 }
    }
}

/// One series of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// All labels, the name among them if it has one.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// An alert that is pending or fires.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// Its name.
    pub name: String,
    /// Whether it fires; otherwise it is pending.
    pub firing: bool,
    /// All other labels.
    pub labels: BTreeMap<String, String>,
    /// Summary, description and runbook, as an operator reads them.
    pub annotations: BTreeMap<String, String>,
}

impl Alert {
    /// A label; empty if it has none of that name.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// A running Prometheus. Ends, with its data, when dropped.
pub struct Prometheus {
    // In the order in which they go: the files last.
    process: Process,
    folder: Folder,
    port: u16,
}

impl Prometheus {
    /// Starts one on a free loopback port and waits until it answers. Panics with its log if it does not.
    pub fn start(watch: &Watch) -> Self {
        let folder = Folder::temporary("resumed-prometheus-");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("prometheus.yml"), configuration(watch)).expect("prometheus.yml");
        fs::write(at("resumed.rules.yml"), rules_with_for_divided(watch.divide_for_by)).expect("resumed.rules.yml");
        let port = free_port();
        let log = fs::File::create(at("log")).expect("a log file");
        let process = Process::spawn(
            Command::new("prometheus")
                .arg(format!("--config.file={}", at("prometheus.yml").display()))
                .arg(format!("--storage.tsdb.path={}", at("data").display()))
                .arg(format!("--web.listen-address=127.0.0.1:{port}"))
                .current_dir(folder.path())
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("the log twice"))
                .stderr(log),
        )
        .expect("prometheus starts: it is in Debian's package of that name (make test installs it)");
        let mut prometheus = Self { process, folder, port };
        wait_for("a Prometheus that answers", || {
            if let Ok(Some(status)) = prometheus.process.try_wait() {
                panic!("prometheus ended: {status}\n{}", prometheus.log());
            }
            match prometheus.post("/api/v1/query", &[("query", "vector(1)")]) {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("{error}\n{}", prometheus.log())),
            }
        });
        prometheus
    }

    /// Waits until every target has been scraped `times` times without a fault, and the rules evaluated since.
    pub fn wait_for_scrapes(&self, times: u32) {
        let wanted = format!("min(sum_over_time(up{{job=\"resumed\"}}[1h])) >= {times}");
        wait_for("targets scraped", || match self.query(&wanted)?.as_slice() {
            [_] => Ok(()),
            _ => Err(format!("{:?}", self.query("sum_over_time(up{job=\"resumed\"}[1h])"))),
        });
    }

    /// The value of `expression` now.
    ///
    /// # Errors
    /// What Prometheus has against it, or why it does not answer.
    pub fn query(&self, expression: &str) -> Result<Vec<Sample>, String> {
        let data = self.post("/api/v1/query", &[("query", expression)])?;
        if data["resultType"] == "scalar" {
            return Ok(vec![Sample { labels: BTreeMap::new(), value: number(&data["result"][1])? }]);
        }
        let series = data["result"].as_array().ok_or_else(|| format!("no result in {data}"))?;
        let sample = |one: &Value| Ok(Sample { labels: texts(&one["metric"]), value: number(&one["value"][1])? });
        series.iter().map(sample).collect()
    }

    /// Every alert that is pending or fires.
    ///
    /// # Errors
    /// Why it does not answer.
    pub fn alerts(&self) -> Result<Vec<Alert>, String> {
        let data = self.post("/api/v1/alerts", &[])?;
        let alerts = data["alerts"].as_array().ok_or_else(|| format!("no alerts in {data}"))?;
        let alert = |one: &Value| {
            let mut labels = texts(&one["labels"]);
            let name = labels.remove("alertname").unwrap_or_default();
            Alert { name, firing: one["state"] == "firing", labels, annotations: texts(&one["annotations"]) }
        };
        Ok(alerts.iter().map(alert).collect())
    }

    /// The names of the alerts that fire, each with its `instance`, or its `farm` if it is about none. Sorted.
    ///
    /// # Errors
    /// Why it does not answer.
    pub fn firing(&self) -> Result<Vec<(String, String)>, String> {
        let about = |alert: &Alert| match alert.label("instance") {
            "" => alert.label("farm").to_owned(),
            instance => instance.to_owned(),
        };
        let mut firing: Vec<_> = self
            .alerts()?
            .iter()
            .filter(|alert| alert.firing)
            .map(|alert| (alert.name.clone(), about(alert)))
            .collect();
        firing.sort();
        Ok(firing)
    }

    /// Waits until the alert of this name about `about`, an instance or a farm, fires. Returns it.
    pub fn wait_until_fires(&self, name: &str, about: &str) -> Alert {
        let (alert, took) = wait_for(&format!("{name} for {about}"), || {
            let alerts = self.alerts()?;
            let wanted = |alert: &&Alert| {
                alert.firing && alert.name == name && (alert.label("instance") == about || alert.label("farm") == about)
            };
            alerts.iter().find(wanted).cloned().ok_or_else(|| format!("{alerts:#?}"))
        });
        println!("{name} fires for {about} after {took:?}");
        alert
    }

    /// Waits until the alert of this name about `about`, an instance or a farm, fires no more.
    pub fn wait_until_resolves(&self, name: &str, about: &str) {
        let wanted = (name.to_owned(), about.to_owned());
        let (_, took) = wait_for(&format!("the end of {name} for {about}"), || {
            let firing = self.firing()?;
            if firing.contains(&wanted) { Err(format!("{firing:?}")) } else { Ok(()) }
        });
        println!("{name} resolved for {about} after {took:?}");
    }

    /// Waits until nothing fires any more but alerts of these names.
    pub fn wait_until_nothing_fires_but(&self, names: &[&str]) {
        let (_, took) = wait_for("the end of the alerts", || {
            let mut firing = self.firing()?;
            firing.retain(|(name, _)| !names.contains(&name.as_str()));
            if firing.is_empty() { Ok(()) } else { Err(format!("{firing:?}")) }
        });
        println!("resolved after {took:?}");
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The `data` of an answer of its API.
    fn post(&self, path: &str, form: &[(&str, &str)]) -> Result<Value, String> {
        let fault = |error: std::io::Error| format!("POST {path}: {error}");
        let mut body = String::new();
        for (name, value) in form {
            write!(body, "{name}={}&", percent_encoded(value)).expect("text grows");
        }
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).map_err(fault)?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(fault)?;
        // Alerts can only be asked for by GET, and HTTP/1.0 gets its answer in one piece.
        let method = if form.is_empty() { "GET" } else { "POST" };
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .map_err(fault)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(fault)?;
        let (_, json) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("no body in {answer:?}"))?;
        let mut json: Value = serde_json::from_str(json).map_err(|error| format!("{error} in {answer:?}"))?;
        match json["status"].as_str() {
            Some("success") => Ok(json["data"].take()),
            _ => Err(json.to_string()),
        }
    }
}

fn configuration(watch: &Watch) -> String {
    let every = watch.every.as_millis();
    let mut text = format!(
        "global: {{scrape_interval: {every}ms, scrape_timeout: {every}ms, evaluation_interval: {every}ms}}\n\
         rule_files: [resumed.rules.yml]\nscrape_configs:\n  - job_name: resumed\n    static_configs:\n"
    );
    for ScrapeTarget { address, farm, pod } in &watch.targets {
        writeln!(text, "      - {{targets: ['{address}'], labels: {{farm: '{farm}', pod: '{pod}'}}}}")
            .expect("text grows");
    }
    text
}

/// The shipped rules; all that differs is how long a condition must hold before its alert fires.
fn rules_with_for_divided(by: u32) -> String {
    let rules = fs::read_to_string(shipped().join("resumed.rules.yml")).expect("the rules");
    let mut divided = 0;
    let mut text = String::new();
    for line in rules.lines() {
        if let Some(time) = line.strip_prefix("        for: ") {
            let time = humantime::parse_duration(time).unwrap_or_else(|error| panic!("{line:?}: {error}")) / by;
            writeln!(text, "        for: {}ms", time.as_millis()).expect("text grows");
            divided += 1;
        } else {
            writeln!(text, "{line}").expect("text grows");
        }
    }
    assert!(divided > 10, "only {divided} rules have a `for` where it is looked for");
    text
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("text grows");
        }
        encoded
    })
}

fn texts(object: &Value) -> BTreeMap<String, String> {
    let pairs = object.as_object().into_iter().flatten();
    pairs.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// Prometheus writes numbers as texts, for JSON knows no NaN.
fn number(value: &Value) -> Result<f64, String> {
    value.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| format!("no number: {value}"))
}
