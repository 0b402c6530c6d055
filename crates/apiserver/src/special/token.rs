//! `serviceaccounts/token`: a token for a ServiceAccount.

use apimachinery::{GroupVersionKind, Status};
use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;

use super::read;
use crate::handle::Asked;
use crate::registry::call::Call;
use crate::seams::{Lookup, Operation};

const TOKEN_REQUEST: GroupVersionKind =
    GroupVersionKind::from_static("authentication.k8s.io", "v1", "TokenRequest");

pub async fn handle(call: &mut Call<'_>, asked: &Asked, body: &Bytes) -> Result<(StatusCode, Value), Status> {
    let issuer = call.server.config.issuer.clone().ok_or_else(Status::page_not_found)?;
    let mut request = read(call, asked, body, &TOKEN_REQUEST)?;
    let attributes = &asked.info.attributes;
    call.mutate(Operation::Create, &attributes.name, &mut request, None).await?;
    call.validate_admission(Operation::Create, &attributes.name, &mut request, None).await?;
    let lookup: &dyn Lookup = &**call.registry();
    let answer = issuer.issue(lookup, &attributes.namespace, &attributes.name, request)?;
    Ok((StatusCode::CREATED, answer))
}
