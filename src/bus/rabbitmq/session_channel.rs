//! The channel that a link publishes sessions on.
//!
//! Sessions are published without confirms: a broker that refuses one closes the channel. What is refused once is refused
//! again, so the link stays, for the keys' sake, and a new channel tries again after a while.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lapin::{Channel, Connection};

use super::declare::open_channel;
use super::errors;
use crate::bus::BusError;

/// After a refusal the broker is left alone for so long.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

pub(super) struct SessionChannel(Mutex<State>);

struct State {
    channel: Channel,
    refused: Option<RefusedChannel>,
}

#[derive(Clone)]
struct RefusedChannel {
    words: String,
    at: Instant,
    is_told: bool,
}

impl SessionChannel {
    pub(super) fn new(channel: Channel) -> Self {
        Self(Mutex::new(State { channel, refused: None }))
    }

    /// Whether the broker has closed it, and that was not noticed yet.
    pub(super) fn is_closed(&self) -> bool {
        self.with(|state| state.refused.is_none() && !state.channel.status().connected())
    }

    /// The broker has closed it with these words.
    pub(super) fn refused(&self, words: String) {
        self.with(|state| state.refused = Some(RefusedChannel { words, at: Instant::now(), is_told: false }));
    }

    /// A channel to publish on; a new one of `connection` if it is time to try again. Not for two callers at once.
    ///
    /// # Errors
    /// The refusal that closed the last one: once at least, and for as long as the broker is left alone.
    pub(super) async fn get(&self, connection: &Connection) -> Result<Channel, BusError> {
        let (channel, refused) = self.with(|state| {
            let refused = state.refused.clone();
            state.refused.iter_mut().for_each(|refused| refused.is_told = true);
            (state.channel.clone(), refused)
        });
        match refused {
            None => return Ok(channel),
            Some(refused) if !refused.is_told || refused.at.elapsed() < AGAIN_AFTER => {
                return Err(errors::refused("publish on the session plane", &refused.words));
            }
            Some(_) => {}
        }
        let channel = open_channel(connection).await?;
        self.with(|state| *state = State { channel: channel.clone(), refused: None });
        Ok(channel)
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
