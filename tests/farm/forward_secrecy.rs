//! Everything that a farm publishes is recorded by the broker's own tracing, through elections, rotations, sessions, a
//! revocation, a crash, a restart and the warm-up after it. Then the farm secret is stolen: it opens joins, grants and
//! farewells, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use openssl::symm::{Cipher, decrypt_aead};
use prost::Message;
use resumed::internals::probe::{Client, Mode, Options, Session};
use resumed::internals::proto::payload::Kind;
use resumed::internals::proto::{Envelope, Payload};
use testkit::broker::Broker;
use testkit::farm::{Farm, FarmSetup, Proxies, wait_for};
use testkit::sessions::{new_ones_resume, refused_at};
use tokio::runtime::Runtime;

/// What went over the broker: where to (the exchange, or the queue if through the default one), and the bytes.
type Recorded = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// Consumes the firehose of a broker whose tracing is on.
struct Recorder {
    recorded: Recorded,
    _connection: Connection,
    _runtime: Runtime,
}

impl Recorder {
    fn start(broker: &Broker) -> Self {
        broker.ctl(&["trace_on"]);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let recorded = Recorded::default();
        let (connection, mut consumer) = runtime.block_on(async {
            let connection = Connection::connect(&broker.uri(), ConnectionProperties::default()).await;
            let connection = connection.expect("the broker");
            let channel = connection.create_channel().await.expect("a channel");
            let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
            let queue = channel.queue_declare("".into(), options, FieldTable::default()).await.expect("a queue");
            let queue = queue.name().clone();
            let bound = channel.queue_bind(
                queue.clone(),
                "amq.rabbitmq.trace".into(),
                "publish.#".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            );
            bound.await.expect("the firehose");
            let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
            let consumer = channel.basic_consume(queue, "".into(), options, FieldTable::default()).await;
            (connection, consumer.expect("a consumer"))
        });
        let keeps = Arc::clone(&recorded);
        runtime.spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                let headers = delivery.properties.headers().clone().expect("the firehose says where to");
                let route = route(&headers);
                keeps.lock().expect("no panic").push((route, delivery.data));
            }
        });
        Self { recorded, _connection: connection, _runtime: runtime }
    }

    fn so_far(&self) -> Vec<(String, Vec<u8>)> {
        self.recorded.lock().expect("no panic").clone()
    }
}

/// The name that an envelope is bound to, from the firehose's headers.
fn route(headers: &FieldTable) -> String {
    let text = |value: &AMQPValue| match value {
        AMQPValue::LongString(text) => text.to_string(),
        other => panic!("{other:?} in a trace"),
    };
    let exchange = text(headers.inner().get("exchange_name").expect("an exchange"));
    if !exchange.is_empty() {
        return exchange;
    }
    match headers.inner().get("routing_keys") {
        Some(AMQPValue::FieldArray(keys)) => text(keys.as_slice().first().expect("a routing key")),
        other => panic!("routing keys {other:?}"),
    }
}

/// RFC 5869 with SHA-256, for at most 32 bytes of output.
fn hkdf(secret: &[u8], salt: &[u8], info: &[u8]) -> Vec<u8> {
    let hmac = |key: &[u8], text: &[u8]| {
        let key = PKey::hmac(key).expect("a key");
        Signer::new(MessageDigest::sha256(), &key).and_then(|mut hmac| hmac.sign_oneshot_to_vec(text)).expect("HMAC")
    };
    hmac(&hmac(salt, secret), &[info, &[1]].concat())
}

/// Opens `envelope` with the farm secret and nothing else, as if its header said `epoch`. Written from the format's
/// description, so that no rule of the daemon's stands in the way.
fn open(secret: &[u8], farm: &str, route: &str, envelope: &Envelope, epoch: &[u8]) -> Option<Vec<u8>> {
    let key = hkdf(secret, &envelope.salt, format!("resumed/1|{farm}|{route}").as_bytes());
    let sequence = envelope.sequence.to_be_bytes();
    let mut header = Vec::new();
    for field in [&envelope.version.to_be_bytes()[..], &envelope.secret_id, epoch, &envelope.salt, &sequence] {
        header.extend_from_slice(&u32::try_from(field.len()).expect("a length").to_be_bytes());
        header.extend_from_slice(field);
    }
    let nonce = [&[0; 4][..], &sequence].concat();
    let (text, tag) = envelope.ciphertext.split_at(envelope.ciphertext.len() - 16);
    decrypt_aead(Cipher::aes_256_gcm(), &key, Some(&nonce), &header, text, tag).ok()
}

/// The epoch that an envelope claims.
fn epoch_of(body: &[u8]) -> Vec<u8> {
    Envelope::decode(body).expect("nothing but envelopes on the broker").epoch.to_vec()
}

/// A session of each host is resumed by ID on every other, as soon as it is there. Returns those sessions.
fn all_resume(client: &Client, farm: &Farm) -> Vec<Session> {
    let resumed_everywhere = |from| {
        let made = client.handshake(from, Mode::Id).expect("a full handshake").session;
        for to in farm.targets() {
            wait_for("a session resumed on another host", || {
                let resumed = client.resume(&to, &made).map_err(|error| error.to_string())?.resumed;
                if resumed { Ok(()) } else { Err(format!("{to} refused a session of {from}")) }
            });
        }
        made
    };
    farm.targets().iter().map(resumed_everywhere).collect()
}

#[test]
fn recorded_traffic_and_a_farm_secret_stolen_later_open_nothing_but_joins() {
    let broker = Broker::start();
    let recorder = Recorder::start(&broker);
    let setup = FarmSetup {
        keys: "settle = \"200ms\"".to_owned(),
        broker: "report_every = \"500ms\"".to_owned(),
        proxies: Proxies::SessionIds,
        ..FarmSetup::new(3, &broker.uri())
    };
    let mut farm = Farm::start_in_step(&setup);

    // A full run: sessions, a rotation, a revocation that a follower asks the leader for, a leader that crashes, and its
    // return.
    let client = Client::new(Options::default()).expect("a client");
    let flushed = all_resume(&client, &farm);
    let rotated = farm.hosts[0].daemon.command(&["rotate", "--wait", "20s"]);
    assert!(rotated.status.success(), "{rotated:?}");
    let leader = farm.leader();
    let follower = farm.others(leader)[0];
    let revoked = farm.hosts[follower].daemon.command(&["revoke", "--flush-sessions", "--wait", "20s"]);
    assert!(revoked.status.success(), "{revoked:?}");
    for target in farm.targets() {
        refused_at(&client, &target, &flushed);
    }
    let ring = farm.wait_in_step().ring;
    assert!(ring.sessions_from > 0 && ring.floor >= ring.sessions_from, "nothing was revoked: {ring:?}");
    // What is made within the second of the flush is refused as well.
    new_ones_resume(&client, &farm.targets(), Mode::Id);
    all_resume(&client, &farm);
    farm.hosts[leader].daemon.kill();
    let others = farm.others(leader);
    farm.another_leads(&others);
    farm.wait_in_step_at(others[0]);
    let at_return = recorder.so_far().len();
    farm.hosts[leader].daemon.launch();
    farm.wait_in_step();
    for host in &farm.hosts {
        host.daemon.wait_for_metric("resumed_proxies_connected", |value| value == 1.0);
    }
    // It was given the sessions that it lacked: what goes to its feed alone is of warm-ups, and only the part with sessions
    // is long, for each has a master key of 48 bytes and an ID of 32.
    let warm = farm.hosts[leader].daemon.wait_for_metric("resumed_warmup_sessions_received_total", |count| count > 0.0);
    let feed = format!("resumed.{}.sessions.pod.host{leader}.", farm.name());
    let (warm_up, _) = wait_for("a recorded warm-up", || {
        let recorded = recorder.so_far();
        let to_it = recorded[at_return..].iter().filter(|(route, _)| route.starts_with(&feed));
        let lengths: Vec<usize> = to_it.map(|(_, body)| body.len()).collect();
        let long = lengths.iter().filter(|length| **length >= 500).sum::<usize>();
        if long as f64 >= 80.0 * warm { Ok(long) } else { Err(format!("{lengths:?} bytes for {warm} sessions")) }
    });
    println!("a warm-up with {warm} sessions in {warm_up} bytes");
    all_resume(&client, &farm);
    // The farm beats on until there is enough of each.
    let least = [("keys", 10), ("leader", 20), ("sessions", 6), ("node", 4)];
    wait_for("enough recorded messages", || {
        let recorded = recorder.so_far();
        let of = |queue: &str| {
            let prefix = format!("resumed.{}.{queue}", farm.name());
            recorded.iter().filter(|(route, body)| route.starts_with(&prefix) && epoch_of(body) != [0; 8]).count()
        };
        let seen = least.map(|(queue, _)| (queue, of(queue)));
        if least.iter().zip(seen).all(|((_, least), (_, seen))| seen >= *least) {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });

    // The theft.
    let secret = testkit::secret_bytes(&farm.secret);
    let (mut opened, mut sealed, mut epochs) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    for (route, body) in recorder.so_far() {
        let envelope = Envelope::decode(&body[..]).expect("nothing but envelopes on the broker");
        let as_it_is = open(&secret, farm.name(), &route, &envelope, &envelope.epoch);
        if envelope.epoch[..] == [0; 8] {
            let text = as_it_is.unwrap_or_else(|| panic!("a message on {route} that nobody can open"));
            let kind = match Payload::decode(&text[..]).expect("a payload").kind {
                Some(Kind::Join(_)) => "join",
                Some(Kind::EpochGrant(grant)) => {
                    assert_eq!((grant.epoch.len(), grant.public_key.len(), grant.sealed.len()), (8, 32, 48));
                    "grant"
                }
                Some(Kind::Farewell(_)) => "farewell",
                other => panic!("the farm secret alone opens {other:?} on {route}"),
            };
            *opened.entry(kind).or_insert(0) += 1;
        } else {
            assert_eq!(as_it_is, None, "an envelope of an epoch on {route} opens without its key");
            let without = open(&secret, farm.name(), &route, &envelope, &[0; 8]);
            assert_eq!(without, None, "an envelope of an epoch on {route} opens as if it had none");
            epochs.insert(envelope.epoch.to_vec());
            let queue = route.strip_prefix(&format!("resumed.{}.", farm.name())).expect("a name of this farm");
            *sealed.entry(queue.split('.').next().expect("a word").to_owned()).or_insert(0) += 1;
        }
    }
    println!("opened: {opened:?}; sealed: {sealed:?} in {} epochs", epochs.len());
    // Each node joined at least once, and the two other ones were granted a key in both terms.
    assert!(opened["join"] >= 4 && opened["grant"] >= 4, "{opened:?}");
    assert!(epochs.len() >= 2, "a term for each leader: {epochs:?}");
    for (queue, least) in least {
        assert!(sealed.get(queue).is_some_and(|messages| *messages >= least), "{queue} in {sealed:?}");
    }
}
