//! Real parts for tests: PostgreSQL clusters, S3 servers, and a place to run Walden's own programs in.
#![allow(clippy::print_stderr, reason = "what a test machine lacks is said where the test's other output goes")]

pub mod agent;
pub mod by_hand;
pub mod clock;
pub mod disk;
pub mod owner;
pub mod postgres;
pub mod protected;
pub mod run;
pub mod s3;
pub mod scene;
pub mod seaweedfs;
