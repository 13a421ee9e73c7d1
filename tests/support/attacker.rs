//! Somebody with an account on the farm's broker, and with the farm's secret for whoever should not have it: records,
//! forges, replays, and seals what no daemon would. It joins the farm as a node would, for nothing else it sealed would be
//! opened.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeBindOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use openssl::symm::{Cipher, encrypt_aead};
use prost::Message;
use resumed::internals::envelope::{Epochs, JoinKey, KeyAgreements, Opener, Sealer};
use resumed::internals::proto::payload::Kind;
use resumed::internals::proto::{self, Envelope, Payload};
use resumed::internals::routes::Names;
use resumed::{FarmSecret, Secrets, SystemClock};
use tokio::runtime::Runtime;

const SOON: Duration = Duration::from_secs(20);

/// Connected to the broker of one farm.
pub struct Attacker {
    /// The farm's exchanges, in the pod that is under attack.
    pub names: Names,
    runtime: Runtime,
    channel: Channel,
    /// What the farm publishes, by exchange.
    records: HashMap<String, Consumer>,
    farm: String,
    secret_file: std::path::PathBuf,
    sealer: Sealer,
    opener: Opener,
    epochs: Arc<Epochs>,
    sequence: u64,
    clock: SystemClock,
    _connection: Connection,
}

impl Attacker {
    /// Joins the farm called `farm`, whose secret lies in `secret`, and records from now on what it publishes to all,
    /// and the sessions of `pods`. Attacks go to the last of these.
    pub fn join(uri: &str, farm: &str, pods: &[&str], secret: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let pod = pods.last().expect("a pod");
        let names = Names::new(farm, pod);
        let exchanges: Vec<String> =
            pods.iter().map(|pod| Names::new(farm, pod).sessions).chain([names.keys.clone()]).collect();
        let (connection, channel, records) = runtime.block_on(async {
            let connection = Connection::connect(uri, ConnectionProperties::default()).await.expect("the broker");
            let channel = connection.create_channel().await.expect("a channel");
            channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
            let mut records = HashMap::new();
            for exchange in exchanges {
                let consumer = record(&connection, &exchange).await;
                records.insert(exchange, consumer);
            }
            (connection, channel, records)
        });
        let secrets = read(secret);
        let mut attacker = Self {
            sealer: Sealer::new(Arc::clone(&secrets), farm, random()),
            opener: Opener::new(secrets, farm, Duration::from_secs(300)),
            epochs: Arc::new(Epochs::new(Duration::ZERO)),
            names,
            runtime,
            channel,
            records,
            farm: farm.to_owned(),
            secret_file: secret.to_owned(),
            sequence: 0,
            clock: SystemClock::start(),
            _connection: connection,
        };
        attacker.ask_for_epoch();
        attacker
    }

    /// Gets the leader's epoch key by a `Join`, as a node called `mallory`.
    fn ask_for_epoch(&mut self) {
        let inbox = self.names.inbox("mallory", &format!("{:016x}", u64::from_be_bytes(random())));
        let mut answers = self.runtime.block_on(own_queue(&self._connection, &inbox));
        let key = JoinKey::draw(KeyAgreements::BOTH, &mut || random().into()).expect("a key");
        let join = key.offer(proto::Join { inbox: inbox.clone(), ..proto::Join::default() });
        let leader = self.names.leader.clone();
        let sealed = self.seal(&leader, "mallory", Kind::Join(join));
        self.to_leader(&sealed);
        let boot: [u8; 16] = boot_id("mallory").try_into().expect("16 bytes");
        let mut epochs = Epochs::new(Duration::ZERO);
        loop {
            let next = async { tokio::time::timeout(SOON, answers.next()).await };
            let delivery = self.runtime.block_on(next).expect("the leader answers").expect("the consumer lives");
            let body = Bytes::from(delivery.expect("a delivery").data);
            let now = self.clock.now();
            match self.opener.open(&inbox, body, now).expect("an answer").payload.kind {
                Some(Kind::EpochGrant(grant)) => {
                    epochs.lead_to(key.open_grant(&self.farm, &boot, &grant).expect("a grant for this node"), now);
                    self.epochs = Arc::new(epochs.clone());
                    self.opener.set_epochs(Arc::clone(&self.epochs));
                }
                Some(Kind::Announcement(_)) => return,
                other => panic!("an answer to a join: {other:?}"),
            }
        }
    }

    /// UTC milliseconds.
    pub fn wall(&self) -> u64 {
        self.clock.now().wall
    }

    /// Takes the leader's place as soon as it is free: from then on [`Attacker::record`] hears what goes to the leader.
    pub fn take_the_lease(&mut self) {
        let leader = self.names.leader.clone();
        let taken = self.runtime.block_on(async {
            let taken = async {
                loop {
                    // Held by another, the broker refuses it and closes the channel.
                    match try_own_queue(&self._connection, &leader).await {
                        Ok(consumer) => break consumer,
                        Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                    }
                }
            };
            tokio::time::timeout(SOON, taken).await
        });
        self.records.insert(leader, taken.expect("the lease becomes free"));
    }

    /// The next message that the farm publishes to `exchange`, sealed.
    pub fn record(&mut self, exchange: &str) -> Bytes {
        let consumer = self.records.get_mut(exchange).expect("an exchange that is recorded");
        let next = async { tokio::time::timeout(SOON, consumer.next()).await };
        let delivery = self.runtime.block_on(next).unwrap_or_else(|_| panic!("nothing on {exchange} for {SOON:?}"));
        Bytes::from(delivery.expect("the consumer lives").expect("a delivery").data)
    }

    /// Records on `exchange` until `wanted` finds something: that, and the message sealed.
    pub fn record_until<T>(&mut self, exchange: &str, mut wanted: impl FnMut(Payload) -> Option<T>) -> (T, Bytes) {
        loop {
            let sealed = self.record(exchange);
            // What the attacker published itself comes back too, the bad with the good.
            let Ok(opened) = self.opener.open(exchange, sealed.clone(), self.clock.now()) else { continue };
            if let Some(found) = wanted(opened.payload) {
                return (found, sealed);
            }
        }
    }

    /// Publishes `body`; returns when the broker has it.
    pub fn publish(&self, exchange: &str, routing_key: &str, body: &[u8]) {
        self.flood(exchange, routing_key, std::iter::once(body));
    }

    /// Publishes all of `bodies` as fast as the broker takes them.
    pub fn flood<'a>(&self, exchange: &str, routing_key: &str, bodies: impl IntoIterator<Item = &'a [u8]>) {
        self.runtime.block_on(async {
            let mut confirms = Vec::new();
            for body in bodies {
                let options = BasicPublishOptions { mandatory: false, ..Default::default() };
                let published = self.channel.basic_publish(
                    exchange.into(),
                    routing_key.into(),
                    options,
                    body,
                    BasicProperties::default(),
                );
                confirms.push(published.await.expect("published"));
            }
            for confirm in confirms {
                confirm.await.expect("confirmed");
            }
        });
    }

    /// To every node's inbox.
    pub fn to_all(&self, body: &[u8]) {
        self.publish(&self.names.keys, "", body);
    }

    /// To the leader's queue.
    pub fn to_leader(&self, body: &[u8]) {
        self.publish("", &self.names.leader, body);
    }

    /// To every session feed of the pod.
    pub fn to_feeds(&self, body: &[u8]) {
        self.publish(&self.names.sessions, "", body);
    }

    /// Publishes to every node through an exchange of the attacker's own, called `name`.
    pub fn to_all_through(&self, name: &str, body: &[u8]) {
        self.runtime.block_on(async {
            let options = ExchangeDeclareOptions { auto_delete: true, ..Default::default() };
            let declared =
                self.channel.exchange_declare(name.into(), ExchangeKind::Fanout, options, FieldTable::default());
            declared.await.expect("an exchange");
            let bound = self.channel.exchange_bind(
                self.names.keys.as_str().into(),
                name.into(),
                "".into(),
                ExchangeBindOptions::default(),
                FieldTable::default(),
            );
            bound.await.expect("a binding");
        });
        self.publish(name, "", body);
    }

    /// Seals as a daemon called `node` would; its boot id follows from the name.
    pub fn seal(&mut self, route: &str, node: &str, kind: Kind) -> Bytes {
        self.seal_at(route, node, kind, 0)
    }

    /// The same with a clock that is `offset_ms` ahead.
    pub fn seal_at(&mut self, route: &str, node: &str, kind: Kind, offset_ms: i64) -> Bytes {
        let epochs = Arc::clone(&self.epochs);
        let epoch = epochs.sealing(&kind, self.clock.now());
        let payload = self.payload(node, Some(kind), offset_ms);
        self.sealer.seal(epoch, route, &payload).expect("sealed")
    }

    /// The same under the farm secret alone, whatever it is.
    pub fn seal_outside_the_epoch(&mut self, route: &str, node: &str, kind: Kind) -> Bytes {
        let payload = self.payload(node, Some(kind), 0);
        self.sealer.seal(None, route, &payload).expect("sealed")
    }

    /// The same with a farm secret of the attacker's own.
    pub fn seal_without_the_secret(&mut self, route: &str, node: &str, kind: Kind) -> Bytes {
        let secret = FarmSecret::generate().expect("a secret");
        let secrets = Arc::new(Secrets::new(vec![secret]).expect("one secret"));
        let payload = self.payload(node, Some(kind), 0);
        Sealer::new(secrets, &self.farm, random()).seal(None, route, &payload).expect("sealed")
    }

    /// What [`Attacker::seal`] seals.
    pub fn payload(&self, node: &str, kind: Option<Kind>, offset_ms: i64) -> Payload {
        Payload {
            node: node.to_owned(),
            boot_id: boot_id(node),
            sent_at: self.wall().wrapping_add_signed(offset_ms),
            kind,
        }
    }

    /// Seals any bytes at all, as the format's description in `src/envelope/mod.rs` says.
    pub fn seal_raw(&mut self, route: &str, text: &[u8], epoch: [u8; 8]) -> Bytes {
        let secret = crate::secret_bytes(&self.secret_file);
        let salt: [u8; 16] = random();
        let sequence = self.sequence;
        self.sequence += 1;

        let key = hkdf(&secret, &salt, format!("resumed/1|{}|{route}", self.farm).as_bytes());
        let secret_id = hkdf(&secret, b"", b"resumed/1 id")[..8].to_vec();
        let mut header = Vec::new();
        for field in [&1_u32.to_be_bytes()[..], &secret_id, &epoch, &salt, &sequence.to_be_bytes()] {
            header.extend_from_slice(&u32::try_from(field.len()).expect("a length").to_be_bytes());
            header.extend_from_slice(field);
        }
        let nonce = [&[0; 4][..], &sequence.to_be_bytes()].concat();
        let mut tag = [0; 16];
        let sealed = encrypt_aead(Cipher::aes_256_gcm(), &key, Some(&nonce), &header, text, &mut tag);
        let ciphertext = [sealed.expect("sealed"), tag.to_vec()].concat();
        let envelope = Envelope {
            version: 1,
            secret_id: secret_id.into(),
            epoch: epoch.to_vec().into(),
            salt: salt.to_vec().into(),
            sequence,
            ciphertext: ciphertext.into(),
        };
        envelope.encode_to_vec().into()
    }
}

/// The boot id of a node that the attacker makes up.
pub fn boot_id(node: &str) -> Vec<u8> {
    let mut id = node.as_bytes().to_vec();
    id.resize(16, b'!');
    id
}

/// Bytes from OpenSSL.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    openssl::rand::rand_bytes(&mut bytes).expect("random bytes");
    bytes
}

/// A ring as a leader announces it, in no way out of the ordinary but for what `ring` holds.
pub fn announcement(ring: proto::Ring, as_of: u64) -> proto::Announcement {
    proto::Announcement {
        ring: Some(ring),
        as_of,
        fingerprint: vec![0; 8],
        members: 1,
        members_in_step: 1,
        report_every_ms: 500,
        leased: false,
        inbox: String::new(),
        epoch: Vec::new(),
        seat: 0,
        sites: Vec::new(),
    }
}

/// `body` with one bit changed, in the byte `at`.
pub fn flipped(body: &[u8], at: usize) -> Vec<u8> {
    let mut body = body.to_vec();
    body[at] ^= 0x10;
    body
}

fn read(secret: &Path) -> Arc<Secrets> {
    Arc::new(resumed::read_farm_secrets(&[secret]).expect("the farm's secret"))
}

/// A queue of the attacker's own on `exchange`.
async fn record(connection: &Connection, exchange: &str) -> Consumer {
    let channel = connection.create_channel().await.expect("a channel");
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await.expect("a queue");
    let queue = queue.name().clone();
    let bound = channel.queue_bind(
        queue.clone(),
        exchange.into(),
        "".into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bound.await.expect("a binding");
    consume(&channel, queue.as_str()).await
}

/// A queue called `name`.
async fn own_queue(connection: &Connection, name: &str) -> Consumer {
    try_own_queue(connection, name).await.expect("a queue")
}

/// The same, unless it is another's.
async fn try_own_queue(connection: &Connection, name: &str) -> Result<Consumer, lapin::Error> {
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    channel.queue_declare(name.into(), options, FieldTable::default()).await?;
    Ok(consume(&channel, name).await)
}

async fn consume(channel: &Channel, queue: &str) -> Consumer {
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await.expect("a consumer")
}

/// RFC 5869 with SHA-256, for at most 32 bytes of output.
fn hkdf(secret: &[u8], salt: &[u8], info: &[u8]) -> Vec<u8> {
    let hmac = |key: &[u8], text: &[u8]| {
        // An empty salt stands for one of zeros.
        let key = if key.is_empty() { &[0; 32][..] } else { key };
        let key = PKey::hmac(key).expect("a key");
        let mut signer = Signer::new(MessageDigest::sha256(), &key).expect("HMAC");
        signer.sign_oneshot_to_vec(text).expect("HMAC")
    };
    hmac(&hmac(salt, secret), &[info, &[1]].concat())
}
