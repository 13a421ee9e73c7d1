//! Reads the farm secrets again, on SIGHUP or on request, and remembers what became of it.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use tracing::{error, info};

use crate::envelope::Secrets;
use crate::hex::hex;
use crate::node::LastReload;
use crate::secret_files::farm_secret::{self, SecretFileError};

/// The longest reason that the service manager and other nodes are told, in bytes.
const MOST_REASON_BYTES: usize = 256;

/// Why the secrets of before stay in use. No text holds any of a secret file's contents.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    /// A secret file cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretFileError),
    /// The configuration, which names the files, cannot be used.
    #[error("{0}")]
    Configuration(String),
    /// The files are named no longer, and the node still needs them.
    #[error("secret.files names no file any more; a restart takes up a configuration without farm secrets")]
    NoFiles,
}

impl ReloadError {
    /// Why, in one line of at most 256 bytes, for anyone who sees the farm's state: mistakes in the configuration are not for
    /// all of them.
    #[must_use]
    pub(crate) fn in_a_line(&self) -> String {
        let text = match self {
            Self::Configuration(_) => {
                "the configuration cannot be used; `resumed check` on that host says why".to_owned()
            }
            other => other.to_string(),
        };
        let text = text.replace(char::is_control, " ");
        let end = (0..=MOST_REASON_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
        text[..end.unwrap_or(0)].to_owned()
    }
}

/// A request to read them again, with the way back for the ids of the secrets that are in use then.
#[derive(Debug)]
pub(crate) struct ReloadCall {
    /// Who asks.
    pub user: String,
    /// Where the verdict goes.
    pub verdict: oneshot::Sender<Result<Vec<String>, ReloadError>>,
}

/// Reads the farm secrets again.
pub(crate) struct Reloader<F> {
    /// Finds out which files the configuration names now, or why it cannot be known.
    files: F,
    /// Whether there were any when the daemon started.
    had_files: bool,
    secrets: watch::Sender<Arc<Secrets>>,
    last: watch::Sender<LastReload>,
}

impl<F: Fn() -> Result<Vec<PathBuf>, String>> Reloader<F> {
    /// One that puts what it reads into `secrets`, and what became of it into `last`.
    pub(crate) fn new(
        files: F,
        had_files: bool,
        secrets: watch::Sender<Arc<Secrets>>,
        last: watch::Sender<LastReload>,
    ) -> Self {
        Self { files, had_files, secrets, last }
    }

    /// Reads them again for `user` at the wall time `at`, in UTC milliseconds, and returns the ids of those in use from now
    /// on, the one that seals first: none if there is no file to read.
    ///
    /// # Errors
    /// Why those of before stay in use.
    pub(crate) fn reload(&self, user: &str, at: u64) -> Result<Vec<String>, ReloadError> {
        let read = read_again((self.files)(), self.had_files);
        let refused = read.as_ref().err().map(ReloadError::in_a_line);
        self.last.send_replace(LastReload { at, refused });
        match read {
            Ok(Some(read)) => {
                let ids: Vec<String> = read.ids().map(|id| hex(&id)).collect();
                info!(secrets = ids.len(), user, "read the farm secrets again");
                self.secrets.send_replace(Arc::new(read));
                Ok(ids)
            }
            Ok(None) => {
                info!(user, "no secret.files to read again");
                Ok(Vec::new())
            }
            Err(error) => {
                error!(%error, user, "keeping the farm secrets of before");
                Err(error)
            }
        }
    }
}

/// The secrets in `files`; none where there never were any. A configuration that has lost them is refused: the node would
/// go on with those of before, and look as if it had none.
fn read_again(files: Result<Vec<PathBuf>, String>, had_files: bool) -> Result<Option<Secrets>, ReloadError> {
    let files = files.map_err(ReloadError::Configuration)?;
    match (files.is_empty(), had_files) {
        (false, _) => Ok(Some(farm_secret::read_all(&files)?)),
        (true, true) => Err(ReloadError::NoFiles),
        (true, false) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::FarmSecret;

    #[test]
    fn a_reason_is_one_short_line_and_keeps_the_configuration_to_itself() {
        let mistakes = ReloadError::Configuration("1 mistake:\n  broker.uris: \"amqp://a:hunter2@b\"".into());
        assert!(!mistakes.in_a_line().contains("hunter2"), "{mistakes:?}");
        let missing = ReloadError::Secret(farm_secret::read_all(&[PathBuf::from("/é\n".repeat(400))]).unwrap_err());
        let line = missing.in_a_line();
        assert!(line.len() <= 256 && line.starts_with("farm secret /é /é"), "{line}");
        assert!(!line.contains(char::is_control), "{line:?}");
    }

    #[test]
    fn files_that_are_named_no_longer_are_refused_where_there_were_some() {
        assert!(matches!(read_again(Ok(Vec::new()), true), Err(ReloadError::NoFiles)));
        assert!(matches!(read_again(Ok(Vec::new()), false), Ok(None)));
        assert!(matches!(read_again(Err("no".into()), true), Err(ReloadError::Configuration(_))));
    }

    #[test]
    fn what_is_refused_changes_no_secret_and_is_remembered_until_one_is_taken() {
        let folder = crate::temporary::Folder::new();
        let file = folder.path().join("farm.secret");
        let first = Secrets::new(vec![FarmSecret::from_bytes(&[1; 32]).unwrap()]).unwrap();
        let before: Vec<_> = first.ids().collect();
        let secrets = watch::Sender::new(Arc::new(first));
        let last = watch::Sender::new(LastReload::default());
        let reloader = Reloader::new(|| Ok(vec![file.clone()]), true, secrets.clone(), last.clone());
        std::fs::write(&file, "not a secret").unwrap();
        reloader.reload("root", 5).unwrap_err();
        assert_eq!(secrets.borrow().ids().collect::<Vec<_>>(), before);
        let refused = last.borrow().clone();
        assert!(refused.at == 5 && refused.refused.is_some_and(|why| why.contains("farm.secret")), "{last:?}");
        std::fs::remove_file(&file).unwrap();
        let new = FarmSecret::from_bytes(&[2; 32]).unwrap();
        farm_secret::write_new(&new, &file).unwrap();
        assert_eq!(reloader.reload("root", 6).unwrap(), [hex(&new.id())]);
        assert_eq!(*last.borrow(), LastReload { at: 6, refused: None });
        assert_eq!(secrets.borrow().ids().collect::<Vec<_>>(), [new.id()]);
    }
}
