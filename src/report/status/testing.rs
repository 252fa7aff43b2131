//! What tests of the figures begin with.
use super::*;
use crate::report::trees::at;

pub fn seen(systems: &[Timelines]) -> Seen<'_> {
    let nothing = |what: &str| NotSeen { why: format!("no {what} is configured"), tried: false };
    Seen {
        systems,
        unreachable: None,
        here: None,
        wal: Err(nothing("data directory")),
        suspended: Err(nothing("data directory")),
        server: Err(nothing("connection")),
        now: at("21 10:05"),
    }
}

/// Of the system of [`trees::single`](crate::report::trees::single), at the end of segment 40.
pub fn server() -> ServerSeen {
    ServerSeen {
        system: SystemId(7_412_345_678_901_234_567),
        mode: ArchiveMode::On,
        command: "walden-archive %p".into(),
        library: String::new(),
        in_recovery: false,
        timeline: TimelineId::FIRST,
        segment_size: SegmentSize::DEFAULT,
        archive_timeout: Duration::from_secs(60),
        lsn: Lsn(41 * SegmentSize::DEFAULT.bytes()),
        slots: Vec::new(),
        archiver: ArchiverStatus::default(),
    }
}
