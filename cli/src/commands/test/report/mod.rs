//! The results of the tests, for people and for programs.

mod json;
mod junit;
mod table;

pub(crate) use json::json;
pub(crate) use junit::junit;
pub(crate) use table::{explanation, summary};
