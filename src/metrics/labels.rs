//! What metrics are counted by: labels whose values are all known beforehand.

use crate::keys::KeyState;
use crate::reason::{ControlReason, DropReason, KeyReason, ProxyReason, Reason, labelled};

/// A label of a metric, and all values that it can have.
pub(crate) trait Label: Copy {
    /// The label's name.
    const KEY: &'static str;

    /// Every value of the label.
    const VALUES: &'static [&'static str];

    /// This value.
    fn value(self) -> &'static str;
}

labelled! {
    /// What travels on the broker.
    pub(crate) Plane {
        /// Announcements, reports, requests, answers and farewells.
        Keys => "keys",
        /// Session batches.
        Sessions => "sessions",
        /// Calls, offers, requests and chunks by which one node warms up another.
        Warmups => "warmups",
    }
}

labelled! {
    /// The release that runs.
    pub(crate) Release {
        /// This one.
        This => env!("CARGO_PKG_VERSION"),
    }
}

/// The types of `labelled!` as labels of that name.
macro_rules! labels {
    ($($name:ident: $key:literal,)+) => {
        $(impl Label for $name {
            const KEY: &'static str = $key;
            const VALUES: &'static [&'static str] = &Self::LABELS;

            fn value(self) -> &'static str {
                self.as_str()
            }
        })+
    };
}

labels! {
    Plane: "plane",
    Release: "version",
    Reason: "reason",
    KeyReason: "reason",
    DropReason: "reason",
    ProxyReason: "reason",
    ControlReason: "reason",
}

impl Label for KeyState {
    const KEY: &'static str = "state";
    const VALUES: &'static [&'static str] = &{
        let mut values = [""; Self::ALL.len()];
        let mut place = 0;
        while place < values.len() {
            values[place] = Self::ALL[place].as_str();
            place += 1;
        }
        values
    };

    fn value(self) -> &'static str {
        self.as_str()
    }
}
