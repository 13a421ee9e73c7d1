//! The page for people, `/`, and its data, `/farm.json`. Read-only, without key material.
//!
//! However many browsers look, the farm is asked by one task, for one answer at a time and at most every two seconds; all of
//! them get that answer. A request that goes away takes nothing with it.
//!
//! The page is one document: markup, style and script are three files here and are put together when it is first asked for. Its policy
//! (CSP) names the digests of exactly this style and this script, so a browser runs nothing else in it, whatever a node calls itself.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use openssl::base64::encode_block;
use openssl::sha::sha256;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock::SystemClock;
use crate::metrics::page_counts;
use crate::operator::history::{History, STEP};
use crate::operator::page_status::{page_status, refresh_after};
use crate::status::FarmStatus;

/// For how long a request waits: longer than a node waits for a leader that does not answer.
const PATIENCE: Duration = Duration::from_secs(8);

/// What requests see of the task that asks.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    wanted: Arc<Notify>,
    answers: watch::Receiver<Option<PageAnswer>>,
    patience: Duration,
}

/// For how long an answer from so many nodes is given again, and for how long a request waits for one.
#[derive(Clone, Copy)]
struct Timing {
    fresh_for: fn(usize) -> Duration,
    patience: Duration,
}

/// An answer, as it goes out.
#[derive(Clone, Debug)]
struct PageAnswer {
    json: Bytes,
    at: Instant,
    fresh_until: Instant,
}

impl Page {
    /// The page, and the task that answers for it until `stop`. `ask` says how the farm is.
    pub(crate) fn new<F: Future<Output = FarmStatus>>(
        ask: impl Fn() -> F,
        clock: SystemClock,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()>) {
        Self::with_timing(ask, clock, stop, Timing { fresh_for: refresh_after, patience: PATIENCE })
    }

    fn with_timing<F: Future<Output = FarmStatus>>(
        ask: impl Fn() -> F,
        clock: SystemClock,
        stop: CancellationToken,
        timing: Timing,
    ) -> (Self, impl Future<Output = ()>) {
        let wanted = Arc::new(Notify::new());
        let (sender, answers) = watch::channel(None);
        let page = Self { wanted: Arc::clone(&wanted), answers, patience: timing.patience };
        let task = async move {
            let history = Mutex::new(History::default());
            let both = async {
                tokio::join!(note(&history, clock), answer(ask, &history, clock, timing.fresh_for, &wanted, &sender));
            };
            stop.run_until_cancelled(both).await;
        };
        (page, task)
    }

    /// The routes `/` and `/farm.json`.
    pub(crate) fn routes(self) -> Router {
        Router::new().route("/", get(document)).route("/farm.json", get(farm)).with_state(self)
    }

    /// An answer that is new enough, as soon as there is one.
    async fn answer(&self) -> Option<Bytes> {
        let arrived = Instant::now();
        let mut answers = self.answers.clone();
        let will_do = |answer: &Option<PageAnswer>| {
            answer.as_ref().is_some_and(|answer| answer.fresh_until > arrived || answer.at >= arrived)
        };
        if !will_do(&answers.borrow()) {
            self.wanted.notify_one();
        }
        let found = timeout(self.patience, answers.wait_for(will_do)).await;
        found.ok()?.ok()?.as_ref().map(|answer| answer.json.clone())
    }
}

/// Notes what is counted, for ever.
async fn note(history: &Mutex<History>, clock: SystemClock) {
    let mut every = tokio::time::interval(STEP);
    // After a freeze one long step, not many that are empty.
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        lock(history).note(page_counts(), clock.now());
    }
}

/// Asks when somebody wants to know, one question at a time, for ever.
async fn answer<F: Future<Output = FarmStatus>>(
    ask: impl Fn() -> F,
    history: &Mutex<History>,
    clock: SystemClock,
    fresh_for: fn(usize) -> Duration,
    wanted: &Notify,
    answers: &watch::Sender<Option<PageAnswer>>,
) {
    loop {
        wanted.notified().await;
        let status = ask().await;
        let (now, at) = (clock.now(), Instant::now());
        let fresh_until = at + fresh_for(status.nodes.len());
        let page_status = page_status(status, lock(history).seen_from(now), now);
        match serde_json::to_vec(&page_status) {
            Ok(json) => answers.send_replace(Some(PageAnswer { json: json.into(), at, fresh_until })),
            Err(error) => {
                tracing::error!(%error, "the farm's state cannot be written as JSON");
                None
            }
        };
        tokio::time::sleep_until(fresh_until).await;
    }
}

fn lock(history: &Mutex<History>) -> MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The document and the policy that fits it.
struct Document {
    html: Bytes,
    policy: HeaderValue,
}

static DOCUMENT: LazyLock<Document> = LazyLock::new(|| {
    let (style, script) = (include_str!("page/page.css"), include_str!("page/page.js"));
    let html = include_str!("page/page.html").replace("{style}", style).replace("{script}", script);
    let digest = |text: &str| format!("'sha256-{}'", encode_block(&sha256(text.as_bytes())));
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        digest(script),
        digest(style)
    );
    Document {
        html: html.into(),
        policy: HeaderValue::from_str(&policy).expect("a policy of ASCII characters is a header's value"),
    }
});

/// What a browser is told not to do with either.
const HARDENING: [(HeaderName, HeaderValue); 4] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

async fn document() -> Response {
    let Document { html, policy } = &*DOCUMENT;
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    let headers = [(header::CONTENT_TYPE, kind), (header::CONTENT_SECURITY_POLICY, policy.clone())];
    (HARDENING, headers, html.clone()).into_response()
}

async fn farm(State(page): State<Page>) -> Response {
    let policy = "default-src 'none'; frame-ancestors 'none'";
    let headers = [(header::CONTENT_SECURITY_POLICY, policy)];
    match page.answer().await {
        Some(json) => (HARDENING, headers, [(header::CONTENT_TYPE, "application/json")], json).into_response(),
        None => {
            let reason = "the node did not answer: /healthz may say why\n";
            (StatusCode::SERVICE_UNAVAILABLE, HARDENING, headers, reason).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::sync::Semaphore;

    use super::*;
    use crate::status::PageStatus;

    fn text(answer: Option<Bytes>) -> PageStatus {
        serde_json::from_slice(&answer.expect("an answer")).expect("its JSON")
    }

    const AN_HOUR: Timing = Timing { fresh_for: |_| Duration::from_secs(3_600), patience: Duration::from_secs(3_600) };

    /// A page over a farm that counts how often it is asked, and answers as often as `answers` allows.
    async fn with_page<T>(
        timing: Timing,
        answers: &Semaphore,
        asked: &Cell<u64>,
        look: impl AsyncFnOnce(&Page) -> T,
    ) -> T {
        let stop = CancellationToken::new();
        let ask = || async {
            asked.set(asked.get() + 1);
            answers.acquire().await.expect("never closed").forget();
            FarmStatus { farm: format!("asked {} times", asked.get()), ..FarmStatus::default() }
        };
        let (page, task) = Page::with_timing(ask, SystemClock::start(), stop.clone(), timing);
        let looking = async {
            let found = look(&page).await;
            stop.cancel();
            found
        };
        tokio::join!(task, looking).1
    }

    #[tokio::test]
    async fn a_hundred_who_look_at_once_ask_the_farm_once() {
        let (answers, asked) = (Semaphore::new(0), Cell::new(0));
        with_page(AN_HOUR, &answers, &asked, async |page| {
            assert_eq!(asked.get(), 0, "nobody looks");
            let all = futures_util::future::join_all((0..100).map(|_| page.answer()));
            let gate = async {
                tokio::task::yield_now().await;
                answers.add_permits(100);
            };
            for answer in tokio::join!(all, gate).0 {
                assert_eq!(text(answer).status.farm, "asked 1 times");
            }
            assert_eq!(text(page.answer().await).status.farm, "asked 1 times", "the answer is still fresh");
        })
        .await;
        assert_eq!(asked.get(), 1);
    }

    #[tokio::test]
    async fn who_looks_all_the_time_has_the_farm_asked_once_for_each_time_that_an_answer_is_fresh() {
        let (answers, asked) = (Semaphore::new(usize::MAX >> 3), Cell::new(0));
        let fresh_for = Duration::from_millis(20);
        let timing = Timing { fresh_for: |_| Duration::from_millis(20), ..AN_HOUR };
        with_page(timing, &answers, &asked, async |page| {
            let start = Instant::now();
            while asked.get() < 5 {
                page.answer().await.expect("an answer");
                tokio::task::yield_now().await;
            }
            assert!(start.elapsed() >= 4 * fresh_for, "asked 5 times within {:?}", start.elapsed());
        })
        .await;
        assert!((2..=60).all(|nodes| refresh_after(nodes) >= Duration::from_secs(2)));
    }

    #[tokio::test]
    async fn who_goes_away_before_the_answer_does_not_have_it_asked_again() {
        let (answers, asked) = (Semaphore::new(0), Cell::new(0));
        with_page(AN_HOUR, &answers, &asked, async |page| {
            for _ in 0..50 {
                assert!(timeout(Duration::from_millis(1), page.answer()).await.is_err(), "there is no answer yet");
            }
            answers.add_permits(100);
            assert_eq!(text(page.answer().await).status.farm, "asked 1 times");
        })
        .await;
    }

    #[tokio::test]
    async fn a_node_that_does_not_answer_lets_nobody_wait_for_ever() {
        let (answers, asked) = (Semaphore::new(0), Cell::new(0));
        let timing = Timing { patience: Duration::from_millis(20), ..AN_HOUR };
        with_page(timing, &answers, &asked, async |page| {
            assert_eq!(page.answer().await, None);
        })
        .await;
    }

    #[tokio::test]
    async fn an_old_answer_is_not_given_as_a_new_one() {
        let (answers, asked) = (Semaphore::new(100), Cell::new(0));
        let timing = Timing { fresh_for: |_| Duration::from_millis(1), ..AN_HOUR };
        with_page(timing, &answers, &asked, async |page| {
            assert_eq!(text(page.answer().await).status.farm, "asked 1 times");
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert_eq!(text(page.answer().await).status.farm, "asked 2 times");
        })
        .await;
    }

    /// What stands between two tags of the document.
    fn between<'a>(html: &'a str, from: &str, to: &str) -> &'a str {
        let (_, rest) = html.split_once(from).expect("an opening tag");
        rest.split_once(to).expect("a closing tag").0
    }

    #[test]
    fn the_policy_names_what_a_browser_finds_in_the_page_and_nothing_else_may_run() {
        let Document { html, policy } = &*DOCUMENT;
        let html = std::str::from_utf8(html).unwrap();
        let policy = policy.to_str().unwrap();
        for (directive, text) in [
            ("script-src", between(html, "<script>", "</script>")),
            ("style-src", between(html, "<style>", "</style>")),
        ] {
            assert!(text.len() > 500, "{directive}: {text}");
            let source = format!("; {directive} 'sha256-{}';", encode_block(&sha256(text.as_bytes())));
            assert!(policy.contains(&source), "no {source} in {policy}");
        }
        assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
        assert_eq!((html.matches("<script").count(), html.matches("<style").count()), (1, 1));
    }

    #[test]
    fn the_page_is_one_small_document_that_loads_nothing_and_builds_no_markup_from_texts() {
        let html = std::str::from_utf8(&DOCUMENT.html).unwrap();
        assert!(html.len() < 40 << 10, "{} bytes", html.len());
        for word in ["src=", "@import", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!html.contains(word), "{word}");
        }
        assert_eq!(html.matches("url(").count(), html.matches("url(#").count(), "a part of the page itself");
        for (at, _) in html.match_indices("://") {
            let from = html[..at].rfind(['"', '\'']).unwrap_or(0);
            let address = html[from..].get(1..).unwrap_or_default();
            assert!(address.starts_with("http://www.w3.org/"), "{}", &html[from..at + 20]);
        }
    }
}
