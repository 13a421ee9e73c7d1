//! The tasks of a node: a panic in one of them is told.

use std::pin::Pin;

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// Tasks of a node. One that panics is named, and the node is good for nothing then.
#[derive(Clone)]
pub(crate) struct NodeTasks {
    tracker: TaskTracker,
    broken: watch::Sender<Option<&'static str>>,
}

impl NodeTasks {
    /// None so far. `broken` is told of the first one that panics.
    #[must_use]
    pub(crate) fn new(broken: watch::Sender<Option<&'static str>>) -> Self {
        Self { tracker: TaskTracker::new(), broken }
    }

    /// Runs `task`, which is `what`.
    pub(crate) fn spawn(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(watched(what, self.broken.clone(), Box::pin(task)));
    }

    /// Waits until all have ended.
    pub(crate) async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Runs `task`, and says in `broken` that it is `what` if it panics.
async fn watched(
    what: &'static str,
    broken: watch::Sender<Option<&'static str>>,
    task: Pin<Box<dyn Future<Output = ()> + Send>>,
) {
    struct Watch {
        what: &'static str,
        broken: watch::Sender<Option<&'static str>>,
        ended: bool,
    }

    impl Drop for Watch {
        fn drop(&mut self) {
            if !self.ended {
                self.broken.send_if_modified(|first| first.is_none() && first.replace(self.what).is_none());
            }
        }
    }

    let mut watch = Watch { what, broken, ended: false };
    task.await;
    watch.ended = true;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_named_and_one_that_ends_is_not() {
        let (sender, mut broken) = watch::channel(None);
        tokio::spawn(watched("one", sender.clone(), Box::pin(async {}))).await.expect("it ends");
        assert_eq!(*broken.borrow(), None);
        let two = watched("two", sender.clone(), Box::pin(async { panic!("on purpose") }));
        tokio::spawn(two).await.expect_err("it panics");
        assert_eq!(*broken.wait_for(Option::is_some).await.expect("the sender lives"), Some("two"));
        let three = watched("three", sender, Box::pin(async { panic!("on purpose") }));
        tokio::spawn(three).await.expect_err("it panics");
        assert_eq!(*broken.borrow(), Some("two"), "the first one says why");
    }
}
