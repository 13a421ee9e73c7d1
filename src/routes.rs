//! Where messages of a farm go, and what becomes of them: the names of its exchanges and queues, and the leader's seats.

/// One of the leader's queues, which are tried in order: the lease is one for each, and the lowest that can be had counts.
///
/// RabbitMQ with Khepri keeps the exclusive queues of a broker that is gone until it returns or is forgotten. A queue on
/// such a broker can neither be taken nor reach anybody, so the farm goes on to the next seat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat(u8);

impl Seat {
    /// `resumed.<farm>.leader`, where every farm begins.
    pub const FIRST: Self = Self(0);
    /// How many there are: more than brokers can be dead in a cluster whose majority lives.
    pub const COUNT: u8 = 8;

    /// The seat of that number, if there is one: 0 is the first.
    #[must_use]
    pub fn numbered(number: u32) -> Option<Self> {
        u8::try_from(number).ok().filter(|number| *number < Self::COUNT).map(Self)
    }

    /// Its number, from 0.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0.into()
    }

    /// The seat behind it, if it is not the last.
    #[must_use]
    pub(crate) fn next(self) -> Option<Self> {
        Self::numbered(self.number() + 1)
    }

    /// Those before it, the first one first.
    pub(crate) fn before(self) -> impl Iterator<Item = Self> {
        (0..self.0).map(Self)
    }
}

/// The exchanges and the leader's queues of one farm, as one pod of it sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The farm's name.
    pub farm: String,
    /// Fanout exchange for announcements: `resumed.<farm>.keys`.
    pub keys: String,
    /// Fanout exchange for session batches: `resumed.<farm>.sessions.<pod>`.
    pub sessions: String,
    /// The lease and the leader's inbox in one queue: `resumed.<farm>.leader`, the first of [`Names::seat`].
    pub leader: String,
    /// `resumed.<farm>.leader.1` and so on.
    further_seats: Vec<String>,
    inbox_prefix: String,
}

/// The queue that a message came out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The node's inbox: announcements, answers.
    Inbox,
    /// The node's inbox too, for a message that was published to another broker's keys exchange and that the brokers
    /// handed on (RabbitMQ's federation). The broker says so, nothing that is sealed.
    Federated,
    /// The leader's queue: reports, requests.
    Lease,
    /// The node's session feed. The key plane has nothing to do with it, and the farm's machine is handed nothing out of it.
    Feed,
}

/// Where a message on the key plane goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To every node, through the keys exchange.
    Keys,
    /// To the node that holds the lease of that seat, through the default exchange.
    Leader(Seat),
    /// To one node's inbox, through the default exchange.
    Inbox(String),
}

/// What became of a message on the key plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// At least one queue took it.
    Routed,
    /// No queue did (AMQP 312 NO_ROUTE): no node holds the lease, or the inbox is gone.
    Unroutable,
    /// The broker does not answer for it (`basic.nack`): a queue that it is for is on a broker that is gone, or has
    /// crashed. Of several queues the others have it.
    Nacked,
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
            further_seats: (1..Seat::COUNT).map(|number| format!("resumed.{farm}.leader.{number}")).collect(),
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

    /// The leader's queue of a seat.
    #[must_use]
    pub(crate) fn seat(&self, seat: Seat) -> &str {
        let further = usize::from(seat.0).checked_sub(1).and_then(|place| self.further_seats.get(place));
        further.unwrap_or(&self.leader)
    }

    /// The seat whose queue is called `queue`.
    #[must_use]
    pub fn seat_of(&self, queue: &str) -> Option<Seat> {
        (0..Seat::COUNT).map(Seat).find(|seat| self.seat(*seat) == queue)
    }

    /// The exact name that envelopes for `route` are bound to.
    #[must_use]
    pub fn of<'a>(&'a self, route: &'a Route) -> &'a str {
        match route {
            Route::Keys => &self.keys,
            Route::Leader(seat) => self.seat(*seat),
            Route::Inbox(queue) => queue,
        }
    }

    /// Whether `queue` is an inbox of this farm: answers go nowhere else, whatever a request says.
    #[must_use]
    pub(crate) fn is_inbox(&self, queue: &str) -> bool {
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
        assert_eq!(names.seat(Seat::FIRST), "resumed.prod.leader");
        let seats: Vec<_> = std::iter::successors(Some(Seat::FIRST), |seat| seat.next()).collect();
        assert_eq!(seats.len(), usize::from(Seat::COUNT));
        assert_eq!(names.seat(seats[7]), "resumed.prod.leader.7");
        assert!(seats.iter().all(|seat| names.seat_of(names.seat(*seat)) == Some(*seat)));
        assert!(seats[7].before().eq(seats[..7].iter().copied()));
        assert_eq!(names.seat_of("resumed.prod.leader.8"), None);
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
