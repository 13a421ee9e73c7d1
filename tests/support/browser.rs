//! A headless Chromium of a test's own, driven through ChromeDriver (W3C WebDriver, and Chromium's DevTools commands).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use openssl::base64::decode_block;
use serde_json::{Value, json};

use crate::ats::free_port;
use crate::farm::wait_for;
use crate::watcher::{Folder, Process};

/// How long one command may take. Generous: the machine may be busy.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);

/// A screenshot of a long page has some megabytes.
const MOST_BYTES: u64 = 256 << 20;

/// The browser with one window. Ends when dropped.
pub struct Browser {
    agent: ureq::Agent,
    session: String,
    _driver: Process,
    _profile: Folder,
}

/// How wide the window is, and what its user prefers.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Its name in those of screenshots.
    pub name: &'static str,
    /// CSS pixels.
    pub width: u32,
    /// CSS pixels.
    pub height: u32,
    /// A phone's: with touch, and as wide as the page's `viewport` says.
    pub mobile: bool,
    /// `light` or `dark`.
    pub scheme: &'static str,
}

impl Browser {
    /// Starts ChromeDriver and, through it, Chromium.
    pub fn start() -> Self {
        let profile = Folder::temporary("rb-");
        let port = free_port();
        let log = fs::File::create(profile.path().join("chromedriver.log")).expect("a log");
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}")).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("the log twice")).stderr(log);
        let driver = Process::spawn(&mut command).unwrap_or_else(|error| panic!("chromedriver: {error}"));
        let config = ureq::Agent::config_builder().timeout_global(Some(COMMAND_WITHIN)).http_status_as_error(false);
        let agent = ureq::Agent::new_with_config(config.build());
        let url = format!("http://127.0.0.1:{port}");
        wait_for("ChromeDriver", || {
            let status = agent.get(format!("{url}/status")).call().map_err(|error| error.to_string())?;
            if status.status().is_success() { Ok(()) } else { Err(status.status().to_string()) }
        });
        let data = profile.path().join("profile");
        let options = json!({
            "binary": "/usr/bin/chromium",
            "args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--disable-dev-shm-usage", "--hide-scrollbars", "--lang=en-GB", format!("--user-data-dir={}", data.display()),
            ],
        });
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let made = ask(&agent, &format!("{url}/session"), &wanted);
        let id = made["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {made}"));
        Self { session: format!("{url}/session/{id}"), agent, _driver: driver, _profile: profile }
    }

    /// Loads `url`.
    pub fn open(&self, url: &str) {
        self.command("url", &json!({"url": url}));
    }

    /// What the body of a function says in the page: `return document.title`.
    pub fn run(&self, script: &str) -> Value {
        self.command("execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until what was changed last has been laid out and drawn.
    pub fn wait_until_drawn(&self) {
        let script = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done(true)))";
        self.command("execute/async", &json!({"script": script, "args": []}));
    }

    /// What a person can read in the first element that `selector` finds; nothing if it is not there or not shown.
    pub fn text(&self, selector: &str) -> String {
        let script = format!(
            "const found = document.querySelector({}); return found?.checkVisibility() ? found.innerText : ''",
            json!(selector)
        );
        self.run(&script).as_str().expect("a text").trim().to_owned()
    }

    /// Waits until the text of `selector` is as `wanted`.
    pub fn wait_for_text(&self, selector: &str, wanted: impl Fn(&str) -> bool) -> String {
        let (text, _) = wait_for(selector, || {
            let text = self.text(selector);
            if wanted(&text) { Ok(text) } else { Err(format!("{text:?}; the page says\n{}", self.text("body"))) }
        });
        text
    }

    /// Makes the window so wide, and its user prefer that scheme.
    pub fn look_as(&self, view: View) {
        let View { width, height, mobile, scheme, .. } = view;
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile});
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
        // Without motion, so that no colour is on its way to another.
        let features = json!({"features": [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]});
        self.devtools("Emulation.setEmulatedMedia", &features);
    }

    /// Shows colours as somebody with `deficiency` sees them: `deuteranopia`, `achromatopsia`, or `none`.
    pub fn see_as(&self, deficiency: &str) {
        self.devtools("Emulation.setEmulatedVisionDeficiency", &json!({"type": deficiency}));
    }

    /// The whole page as a PNG file.
    pub fn screenshot(&self, file: &Path) {
        let size = self.devtools("Page.getLayoutMetrics", &json!({}))["cssContentSize"].clone();
        let clip = json!({"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1});
        let shot = self.devtools("Page.captureScreenshot", &json!({"captureBeyondViewport": true, "clip": clip}));
        let png = decode_block(shot["data"].as_str().expect("base64")).expect("base64");
        fs::write(file, png).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// A command of Chromium's DevTools protocol.
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.command("goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    /// What the console said since this was last asked, at any level: errors of scripts, of the page's policy, of loading.
    pub fn console(&self) -> Vec<String> {
        self.log("browser").iter().map(|entry| format!("{}: {}", entry["level"], entry["message"])).collect()
    }

    /// Where the page at `url` sent requests to since this was last asked. The browser's own pages do not count.
    pub fn requests_of(&self, url: &str) -> BTreeSet<String> {
        let entries = self.log("performance");
        let messages =
            entries.iter().filter_map(|entry| serde_json::from_str::<Value>(entry["message"].as_str()?).ok());
        let sent = messages.filter(|entry| entry["message"]["method"] == "Network.requestWillBeSent");
        let sent = sent.map(|mut entry| entry["message"]["params"].take()).filter(|sent| sent["documentURL"] == url);
        sent.filter_map(|sent| Some(sent["request"]["url"].as_str()?.to_owned())).collect()
    }

    fn log(&self, kind: &str) -> Vec<Value> {
        match self.command("se/log", &json!({"type": kind})) {
            Value::Array(entries) => entries,
            other => panic!("the log {kind}: {other}"),
        }
    }

    fn command(&self, path: &str, body: &Value) -> Value {
        ask(&self.agent, &format!("{}/{path}", self.session), body)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // ChromeDriver ends Chromium with the session; should that fail, Chromium ends with ChromeDriver.
        let _ended = self.agent.delete(&self.session).call();
    }
}

/// One command of the WebDriver protocol, and its answer's value.
fn ask(agent: &ureq::Agent, url: &str, body: &Value) -> Value {
    let post = agent.post(url).content_type("application/json");
    let mut answer = post.send(body.to_string()).unwrap_or_else(|error| panic!("{url}: {error}"));
    let status = answer.status();
    let text = answer.body_mut().with_config().limit(MOST_BYTES).read_to_string();
    let text = text.unwrap_or_else(|error| panic!("{url}: {error}"));
    let mut said: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{url}: {error}: {text}"));
    assert!(status.is_success(), "{url} {body}: {status}: {}", said["value"]);
    said["value"].take()
}
