//! The dashboard that is shipped, as far as tests look at it.

use std::fs;

use serde_json::Value;

/// A Grafana dashboard.
pub struct Dashboard {
    /// All of it.
    pub json: Value,
    /// Its panels, without the rows that head them.
    pub panels: Vec<Panel>,
}

/// What one panel shows.
pub struct Panel {
    /// All of it.
    pub json: Value,
    /// Its title.
    pub title: String,
    /// Its queries, with Grafana's variables in them.
    pub queries: Vec<String>,
}

impl Dashboard {
    /// `etc/grafana/resumed.json`.
    pub fn shipped() -> Self {
        let file = crate::tree().join("etc/grafana/resumed.json");
        let text = fs::read_to_string(&file).expect("the dashboard");
        let json: Value = serde_json::from_str(&text).expect("JSON");
        let panels = json["panels"].as_array().expect("panels").iter().filter(|panel| panel["type"] != "row");
        let panels = panels.map(Panel::of).collect();
        Self { json, panels }
    }

    /// `query` with Grafana's variables replaced: this farm, and all of its nodes.
    pub fn filled_in(query: &str, farm: &str) -> String {
        let filled = query.replace("$farm", farm).replace("$instance", ".*").replace("$__rate_interval", "1m");
        assert!(!filled.contains('$'), "a variable that no test knows: {filled}");
        filled
    }
}

impl Panel {
    fn of(json: &Value) -> Self {
        let targets = json["targets"].as_array().into_iter().flatten();
        Self {
            json: json.clone(),
            title: json["title"].as_str().unwrap_or_default().to_owned(),
            queries: targets.map(|target| target["expr"].as_str().unwrap_or_default().to_owned()).collect(),
        }
    }
}
