//! Says which other sites of the farm this leader hears no longer, and which it hears again.

use tracing::{info, warn};

use super::view::NodeView;
use crate::farm::Site;
use crate::status::SiteStatus;

/// A site, for `status`.
pub(super) fn site_status(site: Site) -> SiteStatus {
    let silent = site.is_silent();
    let Site { name, leader, silent_ms, beat_ms } = site;
    SiteStatus { name, leader, silent, silent_ms, report_every_ms: beat_ms }
}

/// What changed between two looks at a node that leads.
#[derive(Debug, PartialEq, Eq)]
enum SiteChange<'a> {
    First(&'a SiteStatus),
    Silent(&'a SiteStatus),
    Again(&'a SiteStatus),
}

/// A node that has just begun to lead tells of what is silent, too: the leader before may be what is gone.
fn changes<'a>(before: &NodeView, after: &'a NodeView) -> Vec<SiteChange<'a>> {
    if !after.leads {
        return Vec::new();
    }
    let change = |site: &'a SiteStatus| {
        let known = before.sites.iter().find(|known| known.name == site.name);
        match (known.map(|known| known.silent && before.leads), site.silent) {
            (None | Some(false), true) => Some(SiteChange::Silent(site)),
            (Some(true), false) => Some(SiteChange::Again(site)),
            (None, false) => Some(SiteChange::First(site)),
            (Some(_), _) => None,
        }
    };
    after.sites.iter().filter_map(change).collect()
}

/// One line for each site that fell silent or is heard again. Their names come from brokers, and are quoted.
pub(super) fn tell_of_sites(before: &NodeView, after: &NodeView) {
    for change in changes(before, after) {
        match change {
            SiteChange::First(site) => {
                info!(site = ?site.name, leader = ?site.leader, "another site of the farm is heard")
            }
            SiteChange::Silent(site) => warn!(
                site = ?site.name,
                leader = ?site.leader,
                silent_ms = site.silent_ms,
                "another site of the farm is silent: no keys come from there (is the link between the brokers up?)"
            ),
            SiteChange::Again(site) => {
                info!(site = ?site.name, leader = ?site.leader, "another site of the farm is heard again")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(leads: bool, sites: &[(&str, bool)]) -> NodeView {
        let site = |(name, silent): &(&str, bool)| SiteStatus {
            name: (*name).into(),
            silent: *silent,
            ..SiteStatus::default()
        };
        NodeView { leads, sites: sites.iter().map(site).collect(), ..NodeView::default() }
    }

    fn told(before: &NodeView, after: &NodeView) -> Vec<String> {
        let words = |change| match change {
            SiteChange::First(site) => format!("first {}", site.name),
            SiteChange::Silent(site) => format!("silent {}", site.name),
            SiteChange::Again(site) => format!("again {}", site.name),
        };
        changes(before, after).into_iter().map(words).collect()
    }

    #[test]
    fn a_leader_tells_of_each_change_once() {
        let (none, heard, silent) = (view(true, &[]), view(true, &[("ams", false)]), view(true, &[("ams", true)]));
        assert_eq!(told(&none, &heard), ["first ams"]);
        assert_eq!(told(&heard, &heard), [""; 0]);
        assert_eq!(told(&heard, &silent), ["silent ams"]);
        assert_eq!(told(&silent, &silent), [""; 0]);
        assert_eq!(told(&silent, &heard), ["again ams"]);
        assert_eq!(told(&silent, &none), [""; 0]);
        assert_eq!(told(&view(false, &[("ams", true)]), &silent), ["silent ams"], "it begins to lead");
        assert_eq!(told(&heard, &view(false, &[("ams", true)])), [""; 0], "followers leave it to their leader");
    }
}
