//! That the rules, the dashboard and the runbook fit each other, and what a node shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use resumed::internals::metrics::{self, Row};
use testkit::dashboard::Dashboard;

/// Sections of the runbook that no alert leads to.
const WITHOUT_AN_ALERT: [&str; 3] =
    ["A host was compromised", "Everything was restarted at once", "Certificate differs between hosts"];

fn in_tree(path: &str) -> PathBuf {
    testkit::tree().join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(in_tree(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn rules() -> String {
    text("etc/prometheus/resumed.rules.yml")
}

fn runbook() -> String {
    text("docs/runbook.md")
}

fn promtool(words: &[&str]) {
    let mut promtool = Command::new("promtool");
    promtool.args(words).current_dir(in_tree("etc/prometheus"));
    let output =
        promtool.output().expect("promtool runs: it is in Debian's package prometheus (make test installs it)");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains("SUCCESS"), "promtool {words:?}: {said}");
}

/// The text of each alert's rule, by its name.
fn alerts() -> BTreeMap<String, String> {
    let rules = rules();
    let mut alerts = BTreeMap::new();
    for rule in rules.split("\n      - alert: ").skip(1) {
        let (name, body) = rule.split_once('\n').expect("a rule has more than a name");
        let body = body.split("\n      - ").next().and_then(|body| body.split("\n\n").next()).unwrap_or_default();
        assert!(alerts.insert(name.to_owned(), body.to_owned()).is_none(), "{name} twice");
    }
    assert!(alerts.len() > 20, "only {} alerts found", alerts.len());
    alerts
}

/// The row of a metric, which may be named with the ending of a histogram's series.
fn row_of(name: &str) -> Option<&'static Row> {
    let base = name.strip_suffix("_bucket").unwrap_or(name);
    metrics::TABLE.iter().find(|row| row.name == base)
}

/// Every name with `resumed_` in it, recorded ones with their colons.
fn names(text: &str) -> BTreeSet<String> {
    let in_name = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | ':');
    let words = text.split(|letter: char| !in_name(letter)).map(|word| word.trim_matches(':'));
    words.filter(|word| word.starts_with("resumed_") || word.contains(":resumed_")).map(str::to_owned).collect()
}

fn recorded() -> BTreeSet<String> {
    let rules = rules();
    rules.lines().filter_map(|line| line.strip_prefix("      - record: ")).map(str::to_owned).collect()
}

/// Panics if `text` names what neither a node shows nor a rule records. Returns the metrics of nodes that it names.
fn assert_all_exist(text: &str, place: &str) -> BTreeSet<&'static str> {
    let recorded = recorded();
    let mut used = BTreeSet::new();
    for name in names(text) {
        if name.contains(':') {
            assert!(recorded.contains(&name), "{place}: no rule records {name}");
            continue;
        }
        let row = row_of(&name).unwrap_or_else(|| panic!("{place}: no node shows {name}"));
        used.insert(row.name);
    }
    used
}

/// Panics if `text` selects a metric by a value that its label never has. Returns how many values there are.
fn assert_values_exist(text: &str, place: &str) -> usize {
    let mut values = 0;
    for (at, _) in text.match_indices('{') {
        let before = text[..at].rsplit(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_')).next();
        let Some(label) = before.and_then(row_of).and_then(|row| row.label) else { continue };
        let selected = text[at + 1..].split('}').next().unwrap_or_default();
        for matched in selected.split(',').filter_map(|part| part.trim().strip_prefix(label.key)) {
            let matched = matched.trim_start_matches(['=', '!', '~', '\\', '"']).trim_end_matches(['\\', '"']);
            for value in matched.split('|').filter(|value| !value.is_empty()) {
                assert!(label.values.contains(&value), "{place}: {} is never {value}", label.key);
                values += 1;
            }
        }
    }
    values
}

/// The link to a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    heading.to_lowercase().replace(' ', "-")
}

fn headings(document: &str) -> Vec<&str> {
    document.lines().filter_map(|line| line.strip_prefix("## ")).collect()
}

#[test]
fn prometheus_takes_the_rules_and_the_example_configuration() {
    promtool(&["check", "rules", "resumed.rules.yml"]);
    promtool(&["check", "config", "prometheus.yml"]);
}

#[test]
fn the_rules_pass_their_unit_tests() {
    promtool(&["test", "rules", "resumed.rules.test.yml"]);
}

#[test]
fn every_rule_has_a_unit_test() {
    let tests = text("etc/prometheus/resumed.rules.test.yml");
    for alert in alerts().keys() {
        assert!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert} never fires in a test");
    }
    for name in recorded() {
        assert!(tests.contains(&format!("labels: '{name}{{")), "no test knows a value of {name}");
    }
}

#[test]
fn rules_and_dashboard_name_only_what_there_is() {
    let used = assert_all_exist(&rules(), "the rules");
    assert!(used.len() > 25, "only {used:?}");
    assert_all_exist(&runbook(), "the runbook");
    assert_all_exist(&text("etc/grafana/resumed.json"), "the dashboard");
}

#[test]
fn what_selects_by_a_label_names_values_that_it_has() {
    let mut values = 0;
    for place in
        ["etc/prometheus/resumed.rules.yml", "etc/prometheus/resumed.rules.test.yml", "etc/grafana/resumed.json"]
    {
        values += assert_values_exist(&text(place), place);
    }
    for place in documents() {
        values += assert_values_exist(&text(&place), &place);
    }
    assert!(values > 50, "only {values} found");
}

/// The README and what lies in docs/.
fn documents() -> Vec<String> {
    let entries = fs::read_dir(in_tree("docs")).expect("docs/").map(|entry| entry.expect("an entry").file_name());
    let names = entries.filter_map(|name| name.into_string().ok()).filter(|name| name.ends_with(".md"));
    ["README.md".to_owned()].into_iter().chain(names.map(|name| format!("docs/{name}"))).collect()
}

/// The rows of the README's table of metrics: what stands in backquotes in the first column, and the second one.
fn metrics_of_the_readme() -> Vec<(Vec<String>, String)> {
    let readme = text("README.md");
    let (_, table) = readme.split_once("\n| metric | |\n| --- | --- |\n").expect("a table of metrics");
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    let names = |column: &str| column.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    rows.filter_map(|line| {
        let mut columns = line.split('|').skip(1).map(str::trim);
        Some((names(columns.next()?), columns.next()?.to_owned()))
    })
    .collect()
}

#[test]
fn the_readme_lists_every_metric_with_its_label_once() {
    let named = |row: &Row| row.label.map_or(row.name.to_owned(), |label| format!("{}{{{}}}", row.name, label.key));
    let mut expected: Vec<_> = metrics::TABLE.iter().map(named).collect();
    let mut listed: Vec<_> = metrics_of_the_readme().into_iter().flat_map(|(names, _)| names).collect();
    expected.sort_unstable();
    listed.sort_unstable();
    assert_eq!(listed, expected);
}

/// A row of several metrics says in one what they have in common.
#[test]
fn the_readme_says_of_a_metric_in_a_row_of_its_own_what_its_help_text_says() {
    let mut compared = 0;
    for (names, said) in metrics_of_the_readme() {
        let [name] = &names[..] else { continue };
        let name = name.split('{').next().unwrap_or_default();
        let row = metrics::TABLE.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no metric {name}"));
        let help = row.help.strip_suffix('.').expect("a sentence");
        let same = said.get(..1).is_some_and(|first| first.eq_ignore_ascii_case(&help[..1]))
            && said.get(1..).is_some_and(|rest| rest.starts_with(&help[1..]));
        assert!(same, "{name}: README says {said:?}, the help text {help:?}");
        compared += 1;
    }
    assert!(compared > 15, "only {compared} rows");
}

#[test]
fn every_metric_is_on_the_dashboard_or_behind_a_figure_on_it() {
    let dashboard = text("etc/grafana/resumed.json");
    let mut shown = assert_all_exist(&dashboard, "the dashboard");
    let rules = rules();
    for rule in rules.split("\n      - record: ").skip(1) {
        let name = rule.lines().next().unwrap_or_default();
        if dashboard.contains(name) {
            let rule = rule.split("\n      - ").next().unwrap_or_default();
            shown.extend(assert_all_exist(rule.split_once('\n').map_or("", |(_, rest)| rest), name));
        }
    }
    // A rule may take another's result.
    let missing: Vec<_> = metrics::TABLE.iter().map(|row| row.name).filter(|name| !shown.contains(name)).collect();
    assert!(missing.is_empty(), "on no panel: {missing:?}");
}

#[test]
fn every_alert_says_what_is_wrong_where_what_it_costs_and_what_to_read() {
    for (name, rule) in alerts() {
        let severity = rule.lines().find_map(|line| line.strip_prefix("          severity: ")).unwrap_or_default();
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: severity {severity:?}");
        let annotation = |key: &str| {
            let (_, rest) =
                rule.split_once(&format!("          {key}: ")).unwrap_or_else(|| panic!("{name} has no {key}"));
            rest.split("\n          description:").next().unwrap_or(rest).to_owned()
        };
        let summary = annotation("summary");
        // The one about no target at all has none to name.
        let named = summary.contains("{{ $labels.farm }}") || name == "ResumedNotScraped";
        assert!(named, "{name}: its summary names no farm: {summary}");
        assert!(annotation("description").len() > 60, "{name}: a description says what it costs");
        let runbook = annotation("runbook");
        assert_eq!(runbook.lines().next().unwrap_or_default(), format!("docs/runbook.md#{}", anchor(&name)), "{name}");
    }
}

#[test]
fn the_runbook_has_a_section_for_each_alert_and_no_others_but_those_listed() {
    let runbook = runbook();
    let alerts = alerts();
    let sections = headings(&runbook);
    let distinct: BTreeSet<_> = sections.iter().map(|section| (*section).to_owned()).collect();
    assert_eq!(distinct.len(), sections.len(), "a heading twice: {sections:?}");
    let expected = alerts.keys().cloned().chain(WITHOUT_AN_ALERT.map(str::to_owned)).collect();
    assert_eq!(distinct, expected);
    for section in runbook.split("\n## ").skip(1) {
        let (name, body) = section.split_once('\n').unwrap_or_default();
        if alerts.contains_key(name) {
            for part in ["**Means.**", "**Clients", "**Do"] {
                assert!(
                    body.to_lowercase().contains(&part.to_lowercase()) || body.contains("and **do**"),
                    "{name}: no {part}"
                );
            }
        }
    }
}

/// What the runbook quotes and neither the daemon nor the plugin says.
const SAID_BY_OTHERS: [&str; 2] = ["a host was compromised", "missed heartbeats"];

/// The sources below these folders, with texts that are broken over lines in one piece.
fn sources(folders: &[&str]) -> String {
    let mut folders: Vec<_> = folders.iter().map(|folder| in_tree(folder)).collect();
    let mut all = String::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                let mut pieces = text.split("\\\n");
                all.push_str(pieces.next().unwrap_or_default());
                pieces.for_each(|piece| all.push_str(piece.trim_start()));
            }
        }
    }
    all
}

/// An operator searches the log for them.
#[test]
fn what_the_runbook_quotes_is_said_somewhere() {
    let said = sources(&["src", "ats-plugin/src"]);
    let runbook = runbook().split_whitespace().collect::<Vec<_>>().join(" ");
    let quoted: Vec<_> = runbook.split('"').skip(1).step_by(2).map(|text| text.trim_end_matches(" …")).collect();
    assert!(quoted.len() > 20, "{quoted:?}");
    let unheard = |text: &&&str| !said.contains(**text) && !SAID_BY_OTHERS.contains(*text);
    assert_eq!(quoted.iter().filter(unheard).collect::<Vec<_>>(), [] as [&&str; 0], "quoted, and said nowhere");
    for text in SAID_BY_OTHERS {
        assert!(quoted.contains(&text), "{text} is quoted nowhere");
    }
}

#[test]
fn links_within_the_runbook_lead_somewhere() {
    let runbook = runbook();
    let anchors: BTreeSet<_> = headings(&runbook).into_iter().map(anchor).collect();
    let links: Vec<_> = runbook.split("](#").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(links.len() > 15, "{links:?}");
    for link in links {
        assert!(anchors.contains(link), "no heading for #{link}");
    }
}

#[test]
fn every_reason_for_a_refusal_or_a_drop_is_explained_and_tested_or_called_ordinary() {
    let (runbook, tests) = (runbook(), text("etc/prometheus/resumed.rules.test.yml"));
    for metric in ["resumed_messages_refused_total", "resumed_sessions_dropped_total"] {
        let label = row_of(metric).and_then(|row| row.label).expect("it is counted by reason");
        for reason in label.values {
            assert!(runbook.contains(&format!("`{reason}`")), "the runbook says nothing of {metric} {reason}");
            let series = |line: &str| line.contains(metric) && line.contains(&format!("reason=\"{reason}\""));
            assert!(tests.lines().any(series), "no rule test has {metric} {reason}");
        }
    }
}

#[test]
fn the_dashboard_is_complete() {
    let dashboard = Dashboard::shipped();
    let panels = dashboard.json["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().expect("an id")).collect();
    assert_eq!(ids.len(), panels.len(), "an id twice");
    let variables = dashboard.json["templating"]["list"].as_array().expect("variables");
    let variables: Vec<_> = variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
    assert_eq!(variables, ["datasource", "farm", "instance"]);
    let mut cells = BTreeMap::new();
    for panel in panels {
        let of = |side: &str| panel["gridPos"][side].as_u64().expect("a place");
        assert!(of("x") + of("w") <= 24, "{} is outside of the grid", panel["title"]);
        for (x, y) in (of("x")..of("x") + of("w")).flat_map(|x| (of("y")..of("y") + of("h")).map(move |y| (x, y))) {
            let other = cells.insert((x, y), panel["title"].to_string());
            assert_eq!(other, None, "two panels in one place, {} the second", panel["title"]);
        }
    }
    for panel in &dashboard.panels {
        let of = |key: &str| panel.json[key].as_str().unwrap_or_default();
        assert!(!panel.title.is_empty(), "{}", panel.json);
        assert!(of("description").ends_with('.'), "{}: no description", panel.title);
        assert_eq!(panel.json["datasource"]["uid"], "${datasource}", "{}", panel.title);
        assert!(!panel.queries.is_empty(), "{}: no query", panel.title);
        for query in &panel.queries {
            assert!(query.contains("farm=\"$farm\""), "{}: of every farm at once: {query}", panel.title);
            Dashboard::filled_in(query, "f");
        }
        let targets = panel.json["targets"].as_array().expect("targets");
        let legends = targets.iter().all(|target| target["legendFormat"].as_str().is_some_and(|text| !text.is_empty()));
        assert!(legends, "{}: a query without a legend", panel.title);
    }
}
