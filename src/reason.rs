//! Why something that came from outside is not acted on: the label `reason` of a counter.
//!
//! Each reason is said once, here, with its label. So every one is shown with 0 from the start, and none is counted that
//! is not shown.

use std::fmt;

/// An enum whose every variant has a label, with all of them and their labels in the order in which they stand.
macro_rules! reasons {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident => $label:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// Every reason.
            pub const ALL: [Self; [$($label),+].len()] = [$(Self::$variant),+];

            /// The label of every reason.
            pub const LABELS: [&'static str; Self::ALL.len()] = [$($label),+];

            /// The label `reason`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

reasons! {
    /// Why an envelope, or what was in it, is refused: `resumed_messages_refused_total`.
    Reason {
        /// No farm secret of this node has the id that the envelope names.
        UnknownSecret => "unknown_secret",
        /// This node holds no epoch key with the id that the envelope names.
        UnknownEpoch => "unknown_epoch",
        /// It was not sealed with this secret for this farm and route, or was changed.
        BadTag => "bad_tag",
        /// What it carries may not travel without an epoch key.
        NotInEpoch => "not_in_epoch",
        /// The public key of a join is none.
        BadPublicKey => "bad_public_key",
        /// A grant was made for another key pair, node or farm.
        BadGrant => "bad_grant",
        /// What an announcement names is no epoch key's id.
        BadEpoch => "bad_epoch",
        /// The message was seen before, or is too old to tell.
        Replay => "replay",
        /// Its stamp is too far from this node's clock.
        Clock => "clock",
        /// It is no envelope, or no message.
        Malformed => "malformed",
        /// The envelope is longer than any node sends.
        TooLarge => "too_large",
        /// There is more in it than any node sends, or more than is kept.
        TooMany => "too_many",
        /// So many senders are tracked that there is no room for another.
        TableFull => "table_full",
        /// This release does not know what it is, or it has no business in this queue.
        UnknownKind => "unknown_kind",
        /// An announcement's fingerprint is none.
        BadFingerprint => "bad_fingerprint",
        /// An announcement names an inbox that is not one of this farm.
        BadAnnouncement => "bad_announcement",
        /// A report is not whole, or larger than any node's.
        BadReport => "bad_report",
        /// A request names no inbox of this farm, or no user, or asks for what this release does not know.
        BadRequest => "bad_request",
        /// A join names no inbox of this farm, or more epoch keys than a node holds.
        BadJoin => "bad_join",
        /// A member table names nodes that cannot be.
        BadAnswer => "bad_answer",
        /// An announcement was made for a time too far from this node's.
        AsOfFarOff => "as_of_far_off",
        /// A chunk of a warm-up that this node did not ask for.
        WarmupUnasked => "warmup_unasked",
        /// A chunk of a warm-up beyond what this node gave credit for.
        WarmupOverCredit => "warmup_over_credit",
        /// More warm-up messages of a node than it is answered.
        WarmupFlood => "warmup_flood",
        /// A warm-up message names a feed that is not one of this pod.
        WarmupBadFeed => "warmup_bad_feed",
        /// OpenSSL failed.
        Library => "library",
    }
}

reasons! {
    /// Why a key, or a floor, of a ring is skipped: `resumed_keys_skipped_total`.
    KeyReason {
        /// Its name or its secrets are too short or too long.
        WrongLength => "wrong_length",
        /// It would seal later than any key that is minted now.
        SealFromFarAhead => "seal_from_far_ahead",
        /// It stops sealing before it begins.
        SealsBackwards => "seals_backwards",
        /// Its generation is higher than any that is minted now.
        GenerationFarAhead => "generation_far_ahead",
        /// The floor is higher than any generation that is minted now.
        FloorFarAhead => "floor_far_ahead",
        /// Sessions would be flushed that are not made yet.
        SessionsFromFarAhead => "sessions_from_far_ahead",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_a_label_of_its_own() {
        assert_eq!(Reason::ALL.map(Reason::as_str), Reason::LABELS);
        assert_eq!(KeyReason::ALL.map(KeyReason::as_str), KeyReason::LABELS);
        assert_eq!(BTreeSet::from(Reason::LABELS).len(), Reason::ALL.len());
        assert_eq!(BTreeSet::from(KeyReason::LABELS).len(), KeyReason::ALL.len());
    }
}
