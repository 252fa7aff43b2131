//! Real parts for tests.

pub mod s3;
