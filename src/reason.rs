//! Why something that came from outside is not acted on: the label `reason` of a counter.
//!
//! Each reason is said once, here, with its label. So every one is shown with 0 from the start, and none is counted that
//! is not shown.

/// An enum whose every variant has a label, with all of them and their labels in the order in which they stand.
macro_rules! labelled {
    ($(#[$about:meta])* $vis:vis $name:ident { $($(#[$doc:meta])* $variant:ident => $label:expr,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// All of them.
            pub(crate) const ALL: [Self; [$($label),+].len()] = [$(Self::$variant),+];

            /// The label of each.
            pub(crate) const LABELS: [&'static str; Self::ALL.len()] = [$($label),+];

            /// Its label.
            #[must_use]
            $vis const fn as_str(self) -> &'static str {
                // They stand in the same order.
                Self::LABELS[self as usize]
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

pub(crate) use labelled;

labelled! {
    /// Why an envelope, or what was in it, is refused: `resumed_messages_refused_total`.
    pub Reason {
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
        /// A join offers neither X25519 nor P-256 where this node has it: one of the two hosts is in FIPS mode.
        NoAgreement => "no_agreement",
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

labelled! {
    /// Why a key, or a floor, of a ring is skipped: `resumed_keys_skipped_total`.
    pub KeyReason {
        /// Its name or its secrets are too short or too long.
        WrongLength => "wrong_length",
        /// It would seal later than any key that is minted now.
        SealFromFarAhead => "seal_from_far_ahead",
        /// It stops sealing before it begins.
        SealsBackwards => "seals_backwards",
        /// It seals or opens for longer than any setting allows.
        LivesTooLong => "lives_too_long",
        /// Its generation is higher than any that is minted now.
        GenerationFarAhead => "generation_far_ahead",
        /// The floor is higher than any generation that is minted now.
        FloorFarAhead => "floor_far_ahead",
        /// Sessions would be flushed that are not made yet.
        SessionsFromFarAhead => "sessions_from_far_ahead",
    }
}

labelled! {
    /// Why a session, or a removal, is dropped: it is not sound, it is known already, it was removed or flushed before, or there was
    /// no room or no way for it. `resumed_sessions_dropped_total`.
    pub DropReason {
        /// The announced ID is empty or longer than RFC 5246 allows.
        BadId => "bad_id",
        /// It has more bytes than `sessions.max_session_bytes`.
        TooLarge => "too_large",
        /// It is not the DER of an `SSL_SESSION`.
        BrokenDer => "broken_der",
        /// Its protocol is none of TLS 1.0 to 1.3.
        UnknownVersion => "unknown_version",
        /// It is in a format that this release does not know.
        UnknownFormat => "unknown_format",
        /// It carries another ID than the announced one.
        WrongId => "wrong_id",
        /// Its timeout is over, or it has none.
        Expired => "expired",
        /// It was created too far ahead of this node's clock.
        FromTheFuture => "from_the_future",
        /// Its timeout is longer than a week.
        LivesTooLong => "lives_too_long",
        /// It was removed before it arrived.
        Tombstone => "tombstone",
        /// It is from before the last flush.
        Flushed => "flushed",
        /// It is known already.
        Duplicate => "duplicate",
        /// A proxy reported what the farm had given to it.
        Echo => "echo",
        /// It stands behind the last entry that a batch may have.
        OverLimit => "over_limit",
        /// A tombstone that is no hash.
        BadTombstone => "bad_tombstone",
        /// A removal where `sessions.removals` is `keep`.
        RemovalKept => "removal_kept",
        /// A proxy reported the removal of a session that this node does not hold.
        RemovalUnknown => "removal_unknown",
        /// The outbox has no room for it.
        OutboxFull => "outbox_full",
        /// The broker takes no messages for now.
        BrokerBlocked => "broker_blocked",
        /// There is no connection to a broker.
        BrokerAway => "broker_away",
        /// This node has no epoch key to seal it with.
        NoEpoch => "no_epoch",
        /// It could not be sealed, or the broker did not take it.
        NotSent => "not_sent",
        /// The node stops, and it did not leave in time.
        Stopping => "stopping",
        /// The plugin's queue to this node was full.
        PluginQueueFull => "plugin_queue_full",
        /// It is larger than the proxy takes or reports.
        TooLargeForProxy => "too_large_for_proxy",
        /// A batch for a proxy that fell behind; the proxy is filled again from the cache.
        ProxySlow => "proxy_slow",
    }
}

labelled! {
    /// Why a connection on the plugins' socket is refused or ended: `resumed_proxies_refused_total`.
    pub ProxyReason {
        /// As many proxies are connected as there may be.
        TooMany => "too_many",
        /// Its user is not one that may connect.
        Peer => "peer",
        /// It did not introduce itself in time.
        Silent => "silent",
        /// Its first message is no introduction, or a later one is.
        NoHello => "no_hello",
        /// A message is longer than any may be.
        TooLarge => "too_large",
        /// It ended in the middle of a message.
        Truncated => "truncated",
        /// A message is none.
        Garbage => "garbage",
        /// It left a message unread for too long.
        StoppedReading => "stopped_reading",
        /// The system reported an error.
        Io => "io",
    }
}

labelled! {
    /// Why a connection on the control socket is ended: `resumed_control_refused_total`.
    pub(crate) ControlReason {
        /// What it sent is no request, or came before the last was answered.
        Malformed => "malformed",
        /// A request is longer than any is.
        TooLarge => "too_large",
        /// It ended in the middle of a message.
        Truncated => "truncated",
        /// It neither asked nor took an answer for too long.
        Idle => "idle",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Panics unless each reason has a label of its own, in the order of `all`.
    fn assert_distinct<const N: usize>(all: [&str; N], labels: [&str; N]) {
        assert_eq!(all, labels);
        assert_eq!(BTreeSet::from(labels).len(), N, "{labels:?}");
    }

    #[test]
    fn every_reason_has_a_label_of_its_own() {
        assert_distinct(Reason::ALL.map(Reason::as_str), Reason::LABELS);
        assert_distinct(KeyReason::ALL.map(KeyReason::as_str), KeyReason::LABELS);
        assert_distinct(DropReason::ALL.map(DropReason::as_str), DropReason::LABELS);
        assert_distinct(ProxyReason::ALL.map(ProxyReason::as_str), ProxyReason::LABELS);
        assert_distinct(ControlReason::ALL.map(ControlReason::as_str), ControlReason::LABELS);
    }
}
