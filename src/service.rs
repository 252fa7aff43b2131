//! What a long-running process tells systemd, where that started it. It matters to nobody else.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

/// It does its work from now on.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// It is about to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// What it is doing, in words.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// Gives signs of life for as long as it is polled, where somebody wants them.
pub async fn stay_alive() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut alive = interval((limit / 2).max(Duration::from_millis(1)));
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        alive.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("tell systemd: {error}");
    }
}
