//! Which users may connect to the plugin's socket, by their ids: a set that is kept, so that to ask for one costs nothing.
//!
//! Names stand in the settings, ids come from the system's user database, which may be far away and slow. It is asked at the
//! start, again on a reload, and again when a user connects that it may have a say about: one question at a time, a second
//! apart, however many connect.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::{Now, millis};

/// How long after one question the next may begin that a connection is the cause of.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What the user database said of each name: its id, none for a user that does not exist, or why it did not say.
pub(crate) type Answers<E> = Vec<(String, Result<Option<u32>, E>)>;

/// The users that may connect, and when to ask for their ids.
#[derive(Debug)]
pub(crate) struct AllowedUsers {
    own: u32,
    /// Each name's id. None while there is no such user, as far as is known.
    ids: BTreeMap<String, Option<u32>>,
    asked_at: Option<u64>,
    is_asking: bool,
    ask_again: bool,
}

impl AllowedUsers {
    /// Root, the user with the id `own`, and those called `names`, whose ids are not known yet.
    #[must_use]
    pub(crate) fn new(own: u32, names: impl IntoIterator<Item = String>) -> Self {
        let ids = names.into_iter().map(|name| (name, None)).collect();
        Self { own, ids, asked_at: None, is_asking: false, ask_again: true }
    }

    /// Whether the user with the id `uid`, who connects at `now`, may. Root and the own user always may.
    pub(crate) fn admit(&mut self, uid: u32, now: Now) -> bool {
        if uid == 0 || uid == self.own {
            return true;
        }
        if self.asked_at.is_none_or(|at| now.mono.saturating_sub(at) >= millis(AGAIN_AFTER)) {
            self.ask_again = true;
        }
        self.ids.values().any(|id| *id == Some(uid))
    }

    /// The user database may have changed.
    pub(crate) fn ask_again(&mut self) {
        self.ask_again = true;
    }

    /// The names to ask the user database for, if it is to be asked now; then the answers are to be [taken](Self::take).
    pub(crate) fn begin_asking(&mut self, now: Now) -> Option<Vec<String>> {
        if self.is_asking || !self.ask_again || self.ids.is_empty() {
            return None;
        }
        (self.is_asking, self.ask_again, self.asked_at) = (true, false, Some(now.mono));
        Some(self.ids.keys().cloned().collect())
    }

    /// Takes answers over. A name that there is no answer for keeps its id.
    pub(crate) fn take<E>(&mut self, answers: &Answers<E>) {
        self.is_asking = false;
        for (name, answer) in answers {
            if let (Some(id), Ok(found)) = (self.ids.get_mut(name), answer) {
                *id = *found;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000;

    fn at(mono: u64) -> Now {
        Now { wall: 0, mono: 86_400_000 + mono }
    }

    fn users() -> AllowedUsers {
        AllowedUsers::new(500, ["ats", "web"].map(str::to_owned))
    }

    fn answers(ats: Result<Option<u32>, ()>, web: Result<Option<u32>, ()>) -> Answers<()> {
        vec![("ats".to_owned(), ats), ("web".to_owned(), web)]
    }

    #[test]
    fn root_and_the_own_user_need_no_answer_and_cause_no_question() {
        let mut users = AllowedUsers::new(500, Vec::new());
        assert!(users.admit(0, at(0)) && users.admit(500, at(0)));
        assert!(!users.admit(501, at(0)));
        assert_eq!(users.begin_asking(at(0)), None, "there is no name to ask for");
        let mut users = self::users();
        users.begin_asking(at(0));
        users.take(&answers(Ok(None), Ok(None)));
        assert!(users.admit(0, at(9 * SECOND)) && users.admit(500, at(9 * SECOND)));
        assert_eq!(users.begin_asking(at(9 * SECOND)), None);
    }

    #[test]
    fn a_user_is_admitted_once_the_answer_has_come_and_not_after_another_says_otherwise() {
        let mut users = users();
        assert!(!users.admit(33, at(0)));
        assert_eq!(users.begin_asking(at(0)), Some(vec!["ats".to_owned(), "web".to_owned()]));
        assert!(!users.admit(33, at(1)), "no answer yet");
        users.take(&answers(Ok(None), Ok(Some(33))));
        assert!(users.admit(33, at(2)) && !users.admit(34, at(2)));
        users.ask_again();
        assert!(users.begin_asking(at(3)).is_some());
        users.take(&answers(Ok(Some(35)), Ok(None)));
        assert!(!users.admit(33, at(4)) && users.admit(35, at(4)));
    }

    #[test]
    fn a_database_that_does_not_answer_changes_nothing() {
        let mut users = users();
        users.begin_asking(at(0));
        users.take(&answers(Ok(Some(32)), Ok(Some(33))));
        users.ask_again();
        users.begin_asking(at(1));
        users.take(&answers(Err(()), Ok(Some(34))));
        assert!(users.admit(32, at(2)) && users.admit(34, at(2)) && !users.admit(33, at(2)));
        users.ask_again();
        users.begin_asking(at(3));
        // The thread that asked has died.
        users.take::<()>(&Vec::new());
        assert!(users.admit(32, at(4)) && users.admit(34, at(4)));
    }

    #[test]
    fn however_many_connect_one_question_is_asked_at_a_time_and_a_second_apart() {
        let mut users = users();
        let mut asked = Vec::new();
        for mono in 0..10 * SECOND {
            users.admit(4_000 + u32::try_from(mono).unwrap(), at(mono));
            if users.begin_asking(at(mono)).is_some() {
                asked.push(mono);
            }
            // The database takes 300 ms.
            if asked.last().is_some_and(|begun| begun + 300 == mono) {
                users.take(&answers(Ok(None), Ok(None)));
            }
        }
        assert_eq!(asked, (0..10).map(|second| second * SECOND).collect::<Vec<_>>());
    }

    #[test]
    fn a_question_meanwhile_is_asked_after_the_answer() {
        let mut users = users();
        assert!(users.begin_asking(at(0)).is_some());
        users.ask_again();
        assert_eq!(users.begin_asking(at(1)), None, "one is under way");
        users.take(&answers(Ok(None), Ok(None)));
        assert!(users.begin_asking(at(2)).is_some());
        users.take(&answers(Ok(None), Ok(None)));
        assert_eq!(users.begin_asking(at(5 * SECOND)), None, "no cause");
    }
}
