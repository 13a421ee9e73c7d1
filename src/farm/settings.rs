//! What a node of the farm is told before it starts, and what it tells of its host.

use std::time::Duration;

use crate::keys::KeySettings;
use crate::proto;
use crate::routes::Names;

/// Who the node is and how it behaves.
///
/// Most of it is copied from `NodeSettings`, field by field: those belong to the room that runs a farm beside files and sessions,
/// which this room does not know. The keys' settings are the keys' own type in both. The boot id, the release and the names of
/// queues are no settings: they are drawn or made at the start.
#[derive(Clone, Debug)]
pub struct FarmSettings {
    /// The node's name, 1 to 128 bytes.
    pub node: String,
    /// Random for each start.
    pub boot_id: [u8; 16],
    /// The pod that the node's sessions belong to.
    pub pod: String,
    /// The node's release.
    pub version: String,
    /// The farm's queues.
    pub names: Names,
    /// The life of a key.
    pub keys: KeySettings,
    /// The beat: how often a node reports, at least.
    pub report_every: Duration,
    /// After this long with neither ring nor leader a node mints for itself.
    pub start_alone_after: Duration,
    /// Whether the node may take the lease.
    pub can_lead: bool,
}

/// What the node's reports say besides its ring.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalState {
    /// Entries in the session cache.
    pub sessions: u64,
    /// Proxies connected now.
    pub proxies: Vec<proto::Proxy>,
    /// The farm secrets that the node opens, 8 bytes each.
    pub secret_ids: Vec<Vec<u8>>,
    /// What became of the last attempt to read them again; its reason within 256 bytes.
    pub reload: proto::LastReload,
}
