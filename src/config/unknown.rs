//! Keys and sections that there are not, and what their writer may have meant.

use super::mistake::{Mistake, Origin};

/// The keys and sections that there are.
pub(super) struct Known {
    keys: Vec<&'static str>,
    sections: Vec<&'static str>,
}

impl Known {
    /// `keys` are `section.key`, those of one section side by side.
    pub(super) fn new(keys: Vec<&'static str>) -> Self {
        let mut sections: Vec<_> = keys.iter().filter_map(|key| key.split('.').next()).collect();
        sections.dedup();
        Self { keys, sections }
    }

    /// Whether there is such a section.
    pub(super) fn has_section(&self, name: &str) -> bool {
        self.sections.contains(&name)
    }

    /// A key outside of any section, or a section that is no table.
    pub(super) fn outside(&self, name: String, origin: Origin) -> Mistake {
        let (reason, accepted) = match (self.has_section(&name), &origin) {
            (true, Origin::Environment(_)) => {
                ("is a section, not a key", format!("RESUMED__{}__KEY", name.to_uppercase()))
            }
            (true, _) => ("is a section, not a key", format!("a table [{name}]")),
            (false, _) => ("stands outside of any section", self.nearest(&name, None)),
        };
        Mistake { key: name, value: None, origin, reason: reason.into(), accepted }
    }

    /// A section that there is not. `key` is what stands there: the section, or a key in it.
    pub(super) fn unknown_section(&self, key: String, origin: Origin) -> Mistake {
        let section = key.split('.').next().unwrap_or(&key);
        let all = self.sections.join(", ");
        let accepted = match closest(section, self.sections.iter().copied()) {
            Some(near) => format!("perhaps {near} is meant; the sections are {all}"),
            None => format!("the sections {all}"),
        };
        Mistake { key, value: None, origin, reason: "unknown section".into(), accepted }
    }

    /// A key that its section does not have. Its value is not shown: it may well be a password.
    pub(super) fn unknown_key(&self, key: String, origin: Origin) -> Mistake {
        let (section, name) = key.split_once('.').unwrap_or((&key, ""));
        let accepted = self.nearest(name, Some(section));
        Mistake { key, value: None, origin, reason: "unknown key".into(), accepted }
    }

    /// What the writer of an unknown key may have meant.
    fn nearest(&self, name: &str, section: Option<&str>) -> String {
        let (elsewhere, here): (Vec<(&str, &str)>, Vec<_>) =
            self.keys.iter().filter_map(|key| key.split_once('.')).partition(|(of, _)| Some(*of) != section);
        let near = closest(name, here.iter().map(|(_, key)| *key));
        if let (Some(section), Some(near)) = (section, near) {
            return format!("perhaps {section}.{near} is meant");
        }
        match elsewhere.iter().find(|(_, key)| *key == name) {
            Some((section, key)) => format!("perhaps {section}.{key} is meant"),
            None => match section {
                Some(section) => {
                    let keys: Vec<&str> = here.iter().map(|(_, key)| *key).collect();
                    format!("the keys of {section}: {}", keys.join(", "))
                }
                None => format!("keys within the sections {}", self.sections.join(", ")),
            },
        }
    }
}

/// The name out of `names` that `name` is a misspelling of: about one slip for every three letters.
fn closest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(slips, known)| *slips <= known.len().div_ceil(3))
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, known)| known)
}
