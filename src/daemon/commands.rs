//! Answers the commands that come on the control socket: each by what an operator may ask of the node.

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::control::ControlCall;
use super::reload::ReloadCall;
use super::users::user_name;
use crate::operator::{Operator, OperatorError, RotationProgress, wait_of};
use crate::proto::local::{ControlReply, Reloaded, RotateProgress, control_reply, control_request};

/// Who answers commands.
#[derive(Clone)]
pub(super) struct Answerer {
    /// Asks the farm.
    pub(super) operator: Operator,
    /// Reads the farm secrets again.
    pub(super) reload_calls: mpsc::Sender<ReloadCall>,
}

/// Answers what comes on the control socket until `stop`.
pub(super) async fn answer_calls(mut calls: mpsc::Receiver<ControlCall>, asked: Answerer, stop: CancellationToken) {
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(call) = calls.recv() => { answers.spawn(answer(call, asked.clone())); }
            Some(ended) = answers.join_next() => if let Err(error) = ended {
                error!(%error, "answering a command ended in a panic");
            },
        }
    }
}

async fn answer(call: ControlCall, Answerer { operator, reload_calls }: Answerer) {
    let user = call.uid.map(user_name).unwrap_or_default();
    let operator = operator.for_user(user.clone());
    let reply = |kind| ControlReply { kind: Some(kind) };
    // An asker who has gone away, or is slow, does not hold up the change.
    let progress = |rotation: &RotationProgress| {
        let _gone = call.replies.try_send(reply(control_reply::Kind::Rotate(rotate_progress(rotation, false))));
    };
    let done = |outcome: Result<RotationProgress, OperatorError>| match outcome {
        Ok(rotation) => control_reply::Kind::Rotate(rotate_progress(&rotation, true)),
        Err(error) => control_reply::Kind::Error(error.to_string()),
    };
    let last = match call.request {
        control_request::Kind::Status(_) => match serde_json::to_vec(&operator.status().await) {
            Ok(json) => control_reply::Kind::StatusJson(json),
            Err(error) => control_reply::Kind::Error(error.to_string()),
        },
        control_request::Kind::Rotate(command) => done(operator.rotate(wait_of(command.wait_ms), progress).await),
        control_request::Kind::Revoke(command) if command.local => {
            done(operator.revoke_local(command.flush_sessions).await)
        }
        control_request::Kind::Revoke(command) => {
            done(operator.revoke(command.flush_sessions, wait_of(command.wait_ms), progress).await)
        }
        control_request::Kind::Reload(_) => reloaded(user, may_read_all(call.uid), &reload_calls).await,
    };
    let _gone = call.replies.send(reply(last)).await;
}

/// A rotation or a revocation as the control socket reports it.
fn rotate_progress(rotation: &RotationProgress, done: bool) -> RotateProgress {
    RotateProgress {
        generation: rotation.generation,
        have: rotation.have.iter().cloned().collect(),
        missing: rotation.missing.iter().cloned().collect(),
        done,
        pending: rotation.pending,
    }
}

/// Whether this user reads the configuration in any case: root, and the daemon's own. Others of the control socket's group
/// may not.
fn may_read_all(uid: Option<u32>) -> bool {
    uid.is_some_and(|uid| uid == 0 || uid == nix::unistd::geteuid().as_raw())
}

/// Has the secrets read again, and says what became of it: in full, or as the whole farm may know it.
async fn reloaded(user: String, in_full: bool, calls: &mpsc::Sender<ReloadCall>) -> control_reply::Kind {
    let (verdict, told) = oneshot::channel();
    let error = |text: String| control_reply::Kind::Error(text);
    if calls.send(ReloadCall { user, verdict }).await.is_err() {
        return error("the daemon is stopping".to_owned());
    }
    match told.await {
        Ok(Ok(secret_ids)) => control_reply::Kind::Reloaded(Reloaded { secret_ids }),
        Ok(Err(refused)) => {
            let why = if in_full { refused.to_string() } else { refused.in_a_line() };
            error(format!("refused, going on with the farm secrets of before: {why}"))
        }
        Err(_) => error("the daemon is stopping".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::super::reload::ReloadError;
    use super::super::tests::{PATIENCE, secrets, settings};
    use super::*;
    use crate::bus::in_process::InProcess;
    use crate::clock::SystemClock;
    use crate::node::{Node, NodeView};
    use crate::proto::local::{ReloadCommand, RevokeCommand, RotateCommand, RotateProgress, StatusCommand};
    use crate::status::{AuditAction, FarmStatus};

    /// A node that leads itself, and what answers commands for it.
    struct Answering {
        node: Node,
        calls: mpsc::Sender<ControlCall>,
        reloads: mpsc::Receiver<ReloadCall>,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    impl Answering {
        async fn start() -> Self {
            let folder = crate::temporary::Folder::new();
            let (_keep, secrets) = watch::channel(Arc::new(secrets()));
            let bus = Arc::new(InProcess::new(Arc::default()));
            let node = Node::start(settings(folder.path()).node, secrets, bus, SystemClock::start());
            let node = node.expect("settings without a fault");
            let (calls, receiver) = mpsc::channel(4);
            let (reload_calls, reloads) = mpsc::channel(1);
            let stop = CancellationToken::new();
            let asked = Answerer { operator: Operator::of(&node), reload_calls };
            let task = tokio::spawn(answer_calls(receiver, asked, stop.clone()));
            let answering = Self { node, calls, reloads, stop, task };
            answering.until("that it leads", |view| view.leads && view.active_generation().is_some()).await;
            answering
        }

        /// Waits until what the node shows is as `wanted` says.
        async fn until(&self, what: &str, wanted: impl Fn(&NodeView) -> bool) {
            let mut view = self.node.view.clone();
            let waited = timeout(PATIENCE, view.wait_for(|view| wanted(view))).await;
            waited.unwrap_or_else(|_| panic!("{what}: {:?}", self.node.view.borrow())).expect("the node runs");
        }

        async fn call(&self, uid: Option<u32>, request: control_request::Kind) -> mpsc::Receiver<ControlReply> {
            let (replies, answers) = mpsc::channel(16);
            self.calls.send(ControlCall { request, uid, replies }).await.expect("calls are taken");
            answers
        }

        /// All replies to a request of the user `uid`.
        async fn ask(&self, uid: Option<u32>, request: control_request::Kind) -> Vec<control_reply::Kind> {
            all(self.call(uid, request).await).await
        }

        async fn status(&self) -> FarmStatus {
            let answers = self.ask(None, control_request::Kind::Status(StatusCommand {})).await;
            let [control_reply::Kind::StatusJson(json)] = &answers[..] else { panic!("{answers:?}") };
            serde_json::from_slice(json).expect("a status")
        }
    }

    async fn all(mut answers: mpsc::Receiver<ControlReply>) -> Vec<control_reply::Kind> {
        let mut all = Vec::new();
        while let Some(reply) = timeout(PATIENCE, answers.recv()).await.expect("an end of the replies") {
            all.push(reply.kind.expect("a kind"));
        }
        all
    }

    /// The last reply, which is that the only node has confirmed; only the last says that it is.
    fn confirmed(replies: &[control_reply::Kind]) -> &RotateProgress {
        let [before @ .., control_reply::Kind::Rotate(last)] = replies else { panic!("{replies:?}") };
        let is_progress = |reply: &control_reply::Kind| matches!(reply, control_reply::Kind::Rotate(now) if !now.done);
        assert!(before.iter().all(is_progress), "{replies:?}");
        assert!(last.done && last.missing.is_empty() && last.have == ["a"], "{replies:?}");
        last
    }

    fn rotate() -> control_request::Kind {
        control_request::Kind::Rotate(RotateCommand { wait_ms: 60_000 })
    }

    fn revoke(local: bool) -> control_request::Kind {
        control_request::Kind::Revoke(RevokeCommand { wait_ms: 60_000, flush_sessions: !local, local })
    }

    fn reload() -> control_request::Kind {
        control_request::Kind::Reload(ReloadCommand {})
    }

    fn error_of(replies: &[control_reply::Kind]) -> &str {
        let [control_reply::Kind::Error(text)] = replies else { panic!("{replies:?}") };
        text
    }

    #[tokio::test]
    async fn each_command_is_answered_with_what_the_node_then_shows() {
        let answering = Answering::start().await;
        let status = answering.status().await;
        assert_eq!((status.asked.as_str(), status.leader.as_deref()), ("a", Some("a")));

        let replies = answering.ask(None, rotate()).await;
        let generation = confirmed(&replies).generation;
        answering.until("the new key", |view| view.ring.keys.iter().any(|key| key.generation == generation)).await;

        let replies = answering.ask(None, revoke(false)).await;
        let floor = confirmed(&replies).generation;
        assert!(floor > generation, "{floor}, {generation}");
        answering.until("the floors", |view| view.ring.floor == floor && view.ring.sessions_from > 0).await;
        let flushed_from = answering.node.view.borrow().ring.sessions_from;

        let replies = answering.ask(None, revoke(true)).await;
        let local = confirmed(&replies).generation;
        assert!(local > floor, "{local}, {floor}");
        answering.until("the floor of its own", |view| view.ring.floor == local).await;
        assert_eq!(answering.node.view.borrow().ring.sessions_from, flushed_from, "no flush was asked for");
    }

    #[tokio::test]
    async fn a_change_goes_on_when_the_asker_has_gone_away() {
        let answering = Answering::start().await;
        let before = answering.node.view.borrow().ring.keys.len();
        drop(answering.call(None, rotate()).await);
        answering.until("the new key", |view| view.ring.keys.len() > before).await;
    }

    #[tokio::test]
    async fn whose_request_it_was_is_kept_and_shown() {
        let answering = Answering::start().await;
        confirmed(&answering.ask(Some(4_000_000_001), rotate()).await);
        confirmed(&answering.ask(None, revoke(true)).await);
        let audit = answering.status().await.audit;
        let asked: Vec<_> = audit.iter().map(|request| (request.action, request.user.as_deref())).collect();
        assert_eq!(asked, [(AuditAction::Rotate, Some("4000000001")), (AuditAction::RevokeLocal, None)]);
    }

    #[tokio::test]
    async fn why_a_reload_was_refused_is_told_in_full_to_those_who_read_the_configuration_anyway() {
        let mut answering = Answering::start().await;
        let own = nix::unistd::geteuid().as_raw();
        for (uid, in_full) in [(Some(0), true), (Some(own), true), (Some(4_000_000_001), false), (None, false)] {
            let answers = answering.call(uid, reload()).await;
            let call = timeout(PATIENCE, answering.reloads.recv()).await.expect("in time").expect("a call");
            assert_eq!(call.user, uid.map(user_name).unwrap_or_default());
            let mistake = ReloadError::Configuration("keys.keep = 99: is too large".to_owned());
            call.verdict.send(Err(mistake)).expect("a verdict is waited for");
            let replies = all(answers).await;
            let text = error_of(&replies);
            assert!(text.starts_with("refused, going on with the farm secrets of before: "), "{text}");
            assert_eq!(text.contains("keys.keep = 99"), in_full, "{uid:?}: {text}");
            assert_eq!(text.contains("`resumed check` on that host says why"), !in_full, "{uid:?}: {text}");
        }
        let answers = answering.call(None, reload()).await;
        let call = timeout(PATIENCE, answering.reloads.recv()).await.expect("in time").expect("a call");
        call.verdict.send(Ok(vec!["0011".to_owned()])).expect("a verdict is waited for");
        let reloaded = control_reply::Kind::Reloaded(Reloaded { secret_ids: vec!["0011".to_owned()] });
        assert_eq!(all(answers).await, [reloaded]);
    }

    #[tokio::test]
    async fn a_daemon_that_stops_says_so_to_each_command() {
        let mut answering = Answering::start().await;
        let answers = answering.call(None, reload()).await;
        drop(timeout(PATIENCE, answering.reloads.recv()).await.expect("in time").expect("a call"));
        assert_eq!(error_of(&all(answers).await), "the daemon is stopping", "it was taken, and not answered");
        answering.reloads.close();
        assert_eq!(error_of(&answering.ask(None, reload()).await), "the daemon is stopping");

        let Answering { node, calls, stop, task, .. } = answering;
        node.stop().await;
        let ask = async |request| {
            let (replies, answers) = mpsc::channel(16);
            calls.send(ControlCall { request, uid: None, replies }).await.expect("calls are taken");
            all(answers).await
        };
        for request in [rotate(), revoke(false), revoke(true)] {
            let replies = ask(request).await;
            assert!(error_of(&replies).starts_with("this node is stopping"), "{replies:?}");
        }
        stop.cancel();
        timeout(PATIENCE, task).await.expect("an end").expect("no panic");
    }

    #[tokio::test]
    async fn a_command_that_waits_does_not_hold_up_the_end() {
        let mut answering = Answering::start().await;
        let answers = answering.call(None, reload()).await;
        let _unanswered = timeout(PATIENCE, answering.reloads.recv()).await.expect("in time").expect("a call");
        answering.stop.cancel();
        timeout(PATIENCE, answering.task).await.expect("an end").expect("no panic");
        assert_eq!(all(answers).await, [], "the connection says that there is no answer");
    }
}
