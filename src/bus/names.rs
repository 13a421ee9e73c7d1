//! The names of a farm's exchanges and queues.

/// The exchanges and the leader's queue of one farm, as one pod of it sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The farm's name.
    pub farm: String,
    /// Fanout exchange for announcements: `resumed.<farm>.keys`.
    pub keys: String,
    /// Fanout exchange for session batches: `resumed.<farm>.sessions.<pod>`.
    pub sessions: String,
    /// The lease and the leader's inbox in one queue: `resumed.<farm>.leader`.
    pub leader: String,
    inbox_prefix: String,
}

/// Where a message on the key plane goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To every node, through the keys exchange.
    Keys,
    /// To whoever holds the lease, through the default exchange.
    Leader,
    /// To one node's inbox, through the default exchange.
    Inbox(String),
}

impl Names {
    /// The names for `farm` and `pod`, both of `[a-z0-9-]{1,63}`.
    #[must_use]
    pub fn new(farm: &str, pod: &str) -> Self {
        Self {
            farm: farm.to_owned(),
            keys: format!("resumed.{farm}.keys"),
            sessions: format!("resumed.{farm}.sessions.{pod}"),
            leader: format!("resumed.{farm}.leader"),
            inbox_prefix: format!("resumed.{farm}.node."),
        }
    }

    /// The inbox of `node`; `nonce` tells one connection's queues from the next one's.
    #[must_use]
    pub fn inbox(&self, node: &str, nonce: &str) -> String {
        format!("{}{node}.{nonce}", self.inbox_prefix)
    }

    /// The session feed of `node`. It is addressed only as its owner says, so a long node name is cut to fit the 255 bytes
    /// of an AMQP name.
    #[must_use]
    pub fn feed(&self, node: &str, nonce: &str) -> String {
        let room = LONGEST_NAME.saturating_sub(self.sessions.len() + nonce.len() + 2);
        let ends = node.char_indices().map(|(at, char)| at + char.len_utf8());
        let cut = ends.take_while(|end| *end <= room).last().unwrap_or(0);
        format!("{}.{}.{nonce}", self.sessions, &node[..cut])
    }

    /// The exact name that envelopes for `route` are bound to.
    #[must_use]
    pub fn of<'a>(&'a self, route: &'a Route) -> &'a str {
        match route {
            Route::Keys => &self.keys,
            Route::Leader => &self.leader,
            Route::Inbox(queue) => queue,
        }
    }

    /// Whether `queue` is an inbox of this farm: answers go nowhere else, whatever a request says.
    #[must_use]
    pub fn is_inbox(&self, queue: &str) -> bool {
        queue.len() <= LONGEST_NAME && queue.starts_with(&self.inbox_prefix)
    }

    /// Whether `queue` is a session feed of this pod: sessions go nowhere else, whatever a request says.
    #[must_use]
    pub fn is_feed(&self, queue: &str) -> bool {
        let of_pod = || queue.strip_prefix(&self.sessions).is_some_and(|rest| rest.starts_with('.'));
        queue.len() <= LONGEST_NAME && of_pod()
    }
}

/// AMQP 0-9-1 carries names as short strings: at most this many bytes.
const LONGEST_NAME: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_topology_table() {
        let names = Names::new("prod", "fra");
        assert_eq!(names.keys, "resumed.prod.keys");
        assert_eq!(names.sessions, "resumed.prod.sessions.fra");
        assert_eq!(names.leader, "resumed.prod.leader");
        assert_eq!(names.inbox("a", "0f"), "resumed.prod.node.a.0f");
        assert_eq!(names.feed("a", "0f"), "resumed.prod.sessions.fra.a.0f");
        assert!(names.is_inbox("resumed.prod.node.a.0f"));
        assert!(!names.is_inbox("resumed.other.node.a.0f"));
        assert!(names.is_feed("resumed.prod.sessions.fra.a.0f"));
        for other in ["resumed.prod.sessions.fra", "resumed.prod.sessions.fra-2.a.0f", "resumed.prod.node.a.0f"] {
            assert!(!names.is_feed(other), "{other}");
        }
    }

    #[test]
    fn the_longest_names_fit_into_an_amqp_name() {
        let part = "p".repeat(63);
        let names = Names::new(&part, &part);
        let node = format!("a{}", "é".repeat(63));
        let nonce = "0123456789abcdef";
        assert!(names.inbox(&node, nonce).len() <= 255);
        let feed = names.feed(&node, nonce);
        assert!((250..=255).contains(&feed.len()), "{} bytes", feed.len());
        assert!(feed.ends_with(nonce));
    }
}
