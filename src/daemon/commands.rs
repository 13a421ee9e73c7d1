//! Answers the commands that come on the control socket: each by what an operator may ask of the node.

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::control::ControlCall;
use super::reload::ReloadCall;
use super::users::user_name;
use crate::operator::{Operator, OperatorError, Rollout, wait_of};
use crate::proto::local::{ControlReply, Reloaded, RotateProgress, control_reply, control_request};

/// Who answers commands.
#[derive(Clone)]
pub(super) struct Asked {
    /// Asks the farm.
    pub(super) operator: Operator,
    /// Reads the farm secrets again.
    pub(super) reload_calls: mpsc::Sender<ReloadCall>,
}

/// Answers what comes on the control socket until `stop`.
pub(super) async fn answer_calls(mut calls: mpsc::Receiver<ControlCall>, asked: Asked, stop: CancellationToken) {
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

async fn answer(call: ControlCall, Asked { operator, reload_calls }: Asked) {
    let user = call.uid.map(user_name).unwrap_or_default();
    let operator = operator.for_user(user.clone());
    let reply = |kind| ControlReply { kind: Some(kind) };
    // An asker who has gone away, or is slow, does not hold up the change.
    let progress = |rotation: &Rollout| {
        let _gone = call.replies.try_send(reply(control_reply::Kind::Rotate(rotate_progress(rotation, false))));
    };
    let done = |outcome: Result<Rollout, OperatorError>| match outcome {
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
fn rotate_progress(rotation: &Rollout, done: bool) -> RotateProgress {
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
