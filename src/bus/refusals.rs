//! What a broker refuses, told to the person who can change it: which limit or permission it is, and what to type.
//!
//! A permission that is missing stays missing, and a node publishes every beat. So [`Refusals`] says it once, and shows
//! it for as long as it lasts.

use std::collections::BTreeMap;

use super::BusError;
use crate::clock::Now;
use crate::routes::{Names, Route};

/// A refusal that lasts is said again after so long, in milliseconds; so long after the last one it counts as over.
const AGAIN_AFTER_MS: u64 = 60 * 60 * 1000;
/// After so long without another one, in milliseconds, a refusal is over if something was published meanwhile. Where some
/// messages go through and others do not, it is not over.
const OVER_AFTER_MS: u64 = 60 * 1000;
/// Channels that a node publishes on: 8 for keys and one for sessions.
const CHANNELS: u16 = 9;
/// More of a broker's words than that is not repeated, in characters.
const MOST_WORDS: usize = 400;
/// The AMQP library's words when no channel is left.
pub(super) const NO_CHANNEL: &str = "no channel is left";

/// Why the broker refuses, as far as an operator acts differently on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    Permission,
    Channels,
    Queues,
    Size,
    Missing,
    Other,
}

impl Cause {
    fn of(words: &str) -> Self {
        let has = |part| words.contains(part);
        match () {
            () if has("ACCESS_REFUSED") => Self::Permission,
            () if has(NO_CHANNEL) || has("number of channels opened") => Self::Channels,
            () if has("queue limit") => Self::Queues,
            () if has("message size") => Self::Size,
            () if has("NOT_FOUND") => Self::Missing,
            () => Self::Other,
        }
    }
}

/// What is written in single quotes behind `word`, if it can stand in single quotes in a shell.
fn quoted<'a>(words: &'a str, word: &str) -> Option<&'a str> {
    let (_, rest) = words.split_once(&format!("{word} '"))?;
    let (name, _) = rest.split_once('\'')?;
    (!name.is_empty() && !name.chars().any(char::is_control)).then_some(name)
}

/// The broker's words, short and in one line: they come from another host.
fn shown(words: &str) -> String {
    words.chars().take(MOST_WORDS).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// What to do about a refusal in the broker's `words` while a link is open or opens, if that can be told.
#[must_use]
pub(crate) fn remedy(words: &str, names: &Names) -> Option<String> {
    match Cause::of(words) {
        Cause::Permission => {
            let (farm, vhost) = (&names.farm, quoted(words, "vhost").unwrap_or("/"));
            let user = quoted(words, "user").unwrap_or("USER");
            let own = format!(r"^resumed\.{farm}\.");
            Some(format!(
                "grant what a node needs with: rabbitmqctl set_permissions --vhost '{vhost}' '{user}' '{own}' \
                 '^(resumed\\.{farm}\\.|amq\\.default$)' '{own}'"
            ))
        }
        Cause::Channels => Some(match quoted(words, "user") {
            // RabbitMQ 4.0 names the broker there and not the user.
            Some(node) if node.contains('@') => {
                "this limit is max-channels of the user in the URI: raise it with rabbitmqctl \
                 set_user_limits, or take it away with rabbitmqctl clear_user_limits USER max-channels"
                    .to_owned()
            }
            Some(user) => format!(
                "this limit is the user's max-channels: raise it with rabbitmqctl set_user_limits '{user}', or take it away with \
                 rabbitmqctl clear_user_limits '{user}' max-channels"
            ),
            None => format!(
                "this limit is channel_max, in rabbitmq.conf or in the URI: a node needs {CHANNELS} channels on a connection"
            ),
        }),
        Cause::Queues => {
            let vhost = quoted(words, "vhost").unwrap_or("/");
            Some(format!(
                "this limit is the virtual host's max-queues; a farm needs two queues for each node, and a third for the leader: \
                 raise it with rabbitmqctl set_vhost_limits -p '{vhost}' '{{\"max-queues\": N}}', or take it away with rabbitmqctl \
                 clear_vhost_limits -p '{vhost}'"
            ))
        }
        Cause::Size => Some("this limit is max_message_size in rabbitmq.conf: a node needs 2097152".to_owned()),
        Cause::Missing => Some("a node declares it when it connects: look who deletes it".to_owned()),
        Cause::Other => None,
    }
}

/// What to do about a login of `user` to `vhost` that the broker refuses with these `words`, if that can be told.
#[must_use]
pub(crate) fn remedy_at_login(words: &str, user: &str, vhost: &str) -> Option<String> {
    const NEEDS: &str = "a farm needs two connections for each node, and a third for the leader";
    let has = |part| words.contains(part);
    if vhost.is_empty() {
        return Some(format!("the URI names the virtual host with the empty name: {EMPTY_VHOST_REMEDY}"));
    }
    if has("user connection limit") {
        return Some(format!(
            "this limit is the user's max-connections, {NEEDS}: raise it with rabbitmqctl set_user_limits '{user}' \
             '{{\"max-connections\": N}}', or take it away with rabbitmqctl clear_user_limits '{user}' max-connections"
        ));
    }
    if has("node connection limit") {
        return Some(format!("this limit is connection_max in rabbitmq.conf, of all clients of this broker; {NEEDS}"));
    }
    if has("connection limit") {
        return Some(format!(
            "this limit is the virtual host's max-connections, of all its users; {NEEDS}: raise it with rabbitmqctl \
             set_vhost_limits -p '{vhost}' '{{\"max-connections\": N}}', or take it away with rabbitmqctl clear_vhost_limits \
             -p '{vhost}'"
        ));
    }
    if has("access to vhost") && !has("is down") {
        return Some(format!(
            "the user has no permissions in this virtual host: grant them with etc/rabbitmq/permissions.sh FARM '{user}' \
             '{vhost}'"
        ));
    }
    None
}

/// What to look at where a broker accepts a connection and says nothing. One whose `connection_max` is reached leaves further
/// ones unanswered (RabbitMQ 3.10).
pub(super) const SILENT_AT_LOGIN: &str = "it may hang, or connection_max in its rabbitmq.conf may be reached: a farm needs two \
                                          connections for each node, and a third for the leader";

/// How the URI of somebody who meant `/` should end.
pub(crate) const EMPTY_VHOST_REMEDY: &str = "if / is meant, end the URI in %2f, or leave out its last /";

/// `words`, and what to do about them if that can be told.
#[must_use]
pub(crate) fn with_remedy(words: &str, remedy: Option<String>) -> String {
    match remedy {
        Some(remedy) => format!("{words} ({remedy})"),
        None => words.to_owned(),
    }
}

/// What is refused; where a message goes, without the names of nodes, of which there may be many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Towards {
    All,
    Leader,
    Node,
    Pod,
    Lease,
}

impl Towards {
    fn of(route: &Route) -> Self {
        match route {
            Route::Keys => Self::All,
            Route::Leader(_) => Self::Leader,
            Route::Inbox(_) => Self::Node,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::All => "what this node publishes for all nodes",
            Self::Leader => "what this node publishes for the leader",
            Self::Node => "what this node publishes for single nodes",
            Self::Pod => "what this node publishes of sessions",
            Self::Lease => "this node's attempt at the lease",
        }
    }
}

#[derive(Debug)]
struct LastingRefusal {
    sentence: String,
    said_at: u64,
    refused_at: u64,
    published_since: bool,
}

impl LastingRefusal {
    fn is_over(&self, now: Now) -> bool {
        let quiet = now.mono.saturating_sub(self.refused_at);
        quiet >= AGAIN_AFTER_MS || (self.published_since && quiet >= OVER_AFTER_MS)
    }
}

/// What brokers refuse this node now: at most one for each kind of route and of reason.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    standing: BTreeMap<(Towards, Cause), LastingRefusal>,
}

impl Refusals {
    /// Takes in that a publish failed. Returns what is to be said now: nothing if it was said within the hour and has
    /// lasted since then, nor for an error that is no refusal.
    pub(crate) fn refused(&mut self, route: &Route, error: &BusError, names: &Names, now: Now) -> Option<String> {
        self.refused_towards(Towards::of(route), error, names, now)
    }

    /// As [`Self::refused`], of a publish on the session plane.
    pub(crate) fn sessions_refused(&mut self, error: &BusError, names: &Names, now: Now) -> Option<String> {
        self.refused_towards(Towards::Pod, error, names, now)
    }

    fn refused_towards(&mut self, towards: Towards, error: &BusError, names: &Names, now: Now) -> Option<String> {
        let BusError::Refused { reason, .. } = error else { return None };
        let cause = Cause::of(reason);
        if let Some(standing) = self.standing.get_mut(&(towards, cause))
            && !standing.is_over(now)
            && now.mono.saturating_sub(standing.said_at) < AGAIN_AFTER_MS
        {
            (standing.refused_at, standing.published_since) = (now.mono, false);
            return None;
        }
        let sentence =
            format!("the broker refuses {}: {}", towards.as_str(), with_remedy(&shown(reason), remedy(reason, names)));
        let (said_at, refused_at) = (now.mono, now.mono);
        let standing = LastingRefusal { sentence: sentence.clone(), said_at, refused_at, published_since: false };
        self.standing.insert((towards, cause), standing);
        Some(sentence)
    }

    /// Takes in that a message went through.
    pub(crate) fn published(&mut self, route: &Route) {
        self.published_towards(Towards::of(route));
    }

    /// As [`Self::refused`], of an attempt at the lease: it shows until another attempt was answered.
    pub(crate) fn lease_refused(&mut self, error: &BusError, names: &Names, now: Now) -> Option<String> {
        self.refused_towards(Towards::Lease, error, names, now)
    }

    /// Takes in that an attempt at the lease was answered: had, or held by another node.
    pub(crate) fn lease_answered(&mut self) {
        self.standing.retain(|(towards, _), _| *towards != Towards::Lease);
    }

    /// As [`Self::published`], of a message on the session plane.
    pub(crate) fn sessions_published(&mut self) {
        self.published_towards(Towards::Pod);
    }

    fn published_towards(&mut self, towards: Towards) {
        let same = self.standing.iter_mut().filter(|((other, _), _)| *other == towards);
        same.for_each(|(_, standing)| standing.published_since = true);
    }

    /// What is refused at `now`, in sentences.
    #[must_use]
    pub(crate) fn sentences(&self, now: Now) -> Vec<String> {
        let lasting = self.standing.values().filter(|standing| !standing.is_over(now));
        lasting.map(|standing| standing.sentence.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::Seat;

    const DENIED: &str =
        "403 ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused for user 'resumed'";

    fn names() -> Names {
        Names::new("edge", "p")
    }

    fn at(seconds: u64) -> Now {
        // The wall clock may jump: it must not matter.
        Now { wall: 5_000_000 - seconds, mono: 1_000_000 + seconds * 1_000 }
    }

    fn denied(reason: &str) -> BusError {
        BusError::Refused { operation: "publish to resumed.edge.leader".into(), reason: reason.into() }
    }

    fn remedy_of(words: &str) -> String {
        remedy(words, &names()).unwrap_or_else(|| panic!("no remedy for {words}"))
    }

    #[test]
    fn a_missing_permission_comes_with_the_command_that_grants_what_the_script_grants() {
        let told = remedy_of(DENIED);
        let expected = r"set_permissions --vhost '/' 'resumed' '^resumed\.edge\.' '^(resumed\.edge\.|amq\.default$)' '^resumed\.edge\.'";
        assert!(told.ends_with(expected), "{told}");
        let script = include_str!("../../etc/rabbitmq/permissions.sh");
        let granted = r#""^resumed\\.$farm\\." "^(resumed\\.$farm\\.|amq\\.default\$)" "^resumed\\.$farm\\.""#;
        assert!(script.contains(granted), "the script grants something else");
    }

    #[test]
    fn other_refusals_come_with_the_limit_that_is_to_blame() {
        for (words, part) in [
            (NO_CHANNEL, "channel_max"),
            (
                "530 NOT_ALLOWED - number of channels opened for user 'u' has reached the maximum allowed user limit of (2)",
                "clear_user_limits 'u' max-channels",
            ),
            (
                "406 PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost 'v' (1) is reached",
                "set_vhost_limits -p 'v' '{\"max-queues\": N}'",
            ),
            (
                "406 PRECONDITION_FAILED - message size 70000 is larger than configured max size 1000",
                "max_message_size",
            ),
            ("404 NOT_FOUND - no exchange 'resumed.edge.keys' in vhost '/'", "who deletes it"),
        ] {
            assert!(remedy_of(words).contains(part), "{words}: {}", remedy_of(words));
        }
        assert_eq!(remedy("541 INTERNAL_ERROR", &names()), None);
    }

    #[test]
    fn a_refused_login_names_the_limit_and_how_to_raise_it() {
        for (words, vhost, part) in [
            (
                "NOT_ALLOWED - connection refused for user 'u': user connection limit (1) is reached",
                "/",
                "set_user_limits 'u'",
            ),
            (
                "NOT_ALLOWED - access to vhost 'v' refused for user 'u': connection limit (1) is reached",
                "v",
                "set_vhost_limits -p 'v'",
            ),
            ("NOT_ALLOWED - connection refused: node connection limit (9) is reached", "/", "connection_max"),
            ("NOT_ALLOWED - access to vhost 'v' refused for user 'u'", "v", "permissions.sh FARM 'u' 'v'"),
            ("NOT_ALLOWED - vhost  not found", "", "%2f"),
        ] {
            let told = remedy_at_login(words, "u", vhost).unwrap_or_else(|| panic!("no remedy for {words}"));
            assert!(told.contains(part), "{words}: {told}");
        }
        let down = "NOT_ALLOWED - access to vhost 'v' refused for user 'u': vhost 'v' is down";
        assert_eq!(remedy_at_login(down, "u", "v"), None);
        assert_eq!(
            remedy_at_login("ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN", "u", "/"),
            None
        );
    }

    #[test]
    fn what_lasts_is_said_once_an_hour_and_shown_all_the_time() {
        let mut refusals = Refusals::default();
        let inbox = |name: &str| Route::Inbox(name.into());
        let said = |second| refusals.refused(&inbox(&format!("n{second}")), &denied(DENIED), &names(), at(second));
        let said: Vec<u64> = (0..7_300)
            .step_by(2)
            .map(said)
            .zip((0..).step_by(2))
            .filter_map(|(said, second)| said.map(|_| second))
            .collect();
        assert_eq!(said, [0, 3_600, 7_200]);
        let [sentence] = &refusals.sentences(at(7_300))[..] else { panic!("one sentence") };
        assert!(sentence.contains("for single nodes: 403 ACCESS_REFUSED") && sentence.contains("grant"), "{sentence}");
    }

    #[test]
    fn each_kind_of_route_and_reason_is_said() {
        let mut refusals = Refusals::default();
        for route in [Route::Keys, Route::Leader(Seat::FIRST), Route::Inbox("a".into())] {
            for reason in [DENIED, NO_CHANNEL] {
                assert!(refusals.refused(&route, &denied(reason), &names(), at(0)).is_some(), "{route:?} {reason}");
            }
        }
        assert_eq!(refusals.sentences(at(1)).len(), 6);
        let said = refusals.sessions_refused(&denied(DENIED), &names(), at(1)).expect("it is another");
        assert!(said.starts_with("the broker refuses what this node publishes of sessions: 403"), "{said}");
        let said = refusals.lease_refused(&denied(DENIED), &names(), at(1)).expect("it is another");
        assert!(said.starts_with("the broker refuses this node's attempt at the lease: 403"), "{said}");
        assert_eq!(refusals.sentences(at(1)).len(), 8);
        refusals.lease_answered();
        assert_eq!(refusals.sentences(at(1)).len(), 7);
        for error in [BusError::Closed("gone".into()), BusError::Blocked] {
            assert_eq!(refusals.refused(&Route::Keys, &error, &names(), at(9_000)), None);
        }
    }

    #[test]
    fn a_refusal_is_over_when_messages_go_through_and_none_is_refused_for_a_minute() {
        let mut refusals = Refusals::default();
        let refuse = |refusals: &mut Refusals, second| {
            refusals.refused(&Route::Leader(Seat::FIRST), &denied(DENIED), &names(), at(second))
        };
        assert!(refuse(&mut refusals, 0).is_some());
        // Another route says nothing of this one.
        refusals.published(&Route::Keys);
        assert_eq!(refusals.sentences(at(70)).len(), 1);
        // Now and then one goes through.
        for second in (1..300).step_by(2) {
            refusals.published(&Route::Leader(Seat::FIRST));
            assert_eq!(refuse(&mut refusals, second), None, "{second}");
        }
        refusals.published(&Route::Leader(Seat::FIRST));
        assert_eq!(refusals.sentences(at(330)).len(), 1);
        assert_eq!(refusals.sentences(at(360)), Vec::<String>::new());
        assert!(refuse(&mut refusals, 360).is_some(), "it is news again");
        // Nothing goes there any more, as after this node began to lead.
        assert_eq!(refusals.sentences(at(360 + 3_599)).len(), 1);
        assert_eq!(refusals.sentences(at(360 + 3_600)), Vec::<String>::new());
    }

    #[test]
    fn what_a_broker_says_is_short_and_in_one_line() {
        let mut refusals = Refusals::default();
        let words = format!("541 INTERNAL_ERROR\nresumed: all is well\u{1b}[2J{}", "x".repeat(10_000));
        let said = refusals.refused(&Route::Keys, &denied(&words), &names(), at(0)).unwrap();
        assert!(said.len() < 600 && !said.chars().any(char::is_control), "{said:?}");
        let hostile = "403 ACCESS_REFUSED for user 'a\u{7}b'";
        assert!(remedy_of(hostile).contains("'USER'"), "{}", remedy_of(hostile));
    }
}
