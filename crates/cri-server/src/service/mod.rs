//! CRI's calls in terms of the engine's operations.

mod image;
mod runtime;
mod streams;
mod view;

pub(crate) use image::Image;
pub(crate) use runtime::Runtime;

use std::error::Error as _;

use tonic::{Code, Status};

use crate::Error;
use crate::images::{self, PullError};

/// An error as gRPC says it: the code is what the kubelet decides by, the words are what people read in events.
pub(crate) fn status(error: Error) -> Status {
    let code = match &error {
        Error::NotFound { .. } | Error::Image(images::Error::NotFound(_)) => Code::NotFound,
        Error::Image(images::Error::Pull(PullError::NotFound { .. })) => Code::NotFound,
        Error::Image(images::Error::Pull(PullError::Denied { .. })) => Code::PermissionDenied,
        Error::Image(images::Error::Pull(PullError::Unreachable { .. })) => Code::Unavailable,
        Error::Invalid(_) | Error::Image(images::Error::Reference { .. }) => Code::InvalidArgument,
        Error::Conflict(_) => Code::FailedPrecondition,
        Error::Deadline(_) => Code::DeadlineExceeded,
        _ => Code::Unknown,
    };
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let next = source.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = source.source();
    }
    Status::new(code, text)
}
