//! What load balancers, orchestrators and people ask for: `/livez`, `/readyz` and `/healthz`.
//!
//! Each answers GET, HEAD and OPTIONS alike: `option httpchk` of HAProxy asks with OPTIONS unless it is told otherwise.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use serde::Serialize;

use super::Served;

pub(super) fn routes(served: Served) -> Router {
    Router::new()
        .route("/livez", get(livez).options(livez))
        .route("/readyz", get(readyz).options(readyz))
        .route("/healthz", get(healthz).options(healthz))
        .with_state(served)
}

/// Whether the node turns, whatever it has.
async fn livez(State(served): State<Served>) -> impl IntoResponse {
    let health = *served.health.borrow();
    in_a_line(health.liveness(served.clock.now()))
}

/// Whether it has what a proxy beside it needs, in one line.
async fn healthz(State(served): State<Served>) -> impl IntoResponse {
    let health = *served.health.borrow();
    in_a_line(health.verdict(served.clock.now()))
}

fn in_a_line(verdict: Result<(), String>) -> (StatusCode, String) {
    match verdict {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

/// The document at `/readyz`.
#[derive(Debug, Serialize)]
struct Readiness {
    /// Whether a ticket key may seal at this node now, and the node turns.
    ready: bool,
    /// What it lacks to be ready, in sentences; empty if it is.
    lacks: Vec<String>,
}

async fn readyz(State(served): State<Served>) -> impl IntoResponse {
    let health = *served.health.borrow();
    let lacks = health.lacking(served.clock.now());
    let code = if lacks.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let json = serde_json::to_string(&Readiness { ready: lacks.is_empty(), lacks }).unwrap_or_default();
    (code, [(header::CONTENT_TYPE, "application/json")], json)
}
