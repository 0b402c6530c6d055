//! The sockets: a question in, the zone's or upstream's answer out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Edns, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::sync::Semaphore;

use crate::Cluster;
use crate::forward::Forwarder;
use crate::metrics::{Answered, Metrics};
use crate::zone::{Answer, Zone};

/// Questions that wait for upstream at one time; more are answered SERVFAIL, so that a slow upstream does not
/// make this server grow.
const MAX_WAITING: usize = 1024;
/// Names that lead to names inside the cluster: more than this is a circle.
const MAX_ALIASES: usize = 8;
/// What fits a UDP packet on any path; askers may say less.
const MAX_UDP_PAYLOAD: u16 = 1232;

/// Answers requests.
pub(crate) struct Handler {
    pub zone: Zone,
    pub cluster: Arc<dyn Cluster>,
    pub forwarder: Forwarder,
    waiting: Semaphore,
    /// Grows with every answer: the addresses of a name take turns in being the first.
    turn: AtomicUsize,
    /// The cluster's domain as metrics name it.
    domain: String,
    metrics: Metrics,
}

/// The parts of a response.
struct Response {
    code: ResponseCode,
    is_authoritative: bool,
    is_forwarded: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additional: Vec<Record>,
}

impl Response {
    fn code(code: ResponseCode) -> Self {
        let (answers, authorities, additional) = Default::default();
        let (is_authoritative, is_forwarded) = (false, false);
        Response { code, is_authoritative, is_forwarded, answers, authorities, additional }
    }
}

impl Handler {
    pub fn new(zone: Zone, cluster: Arc<dyn Cluster>, forwarder: Forwarder, metrics: Metrics) -> Self {
        let domain = zone.origin().to_string();
        let (waiting, turn) = (Semaphore::new(MAX_WAITING), AtomicUsize::new(0));
        Handler { zone, cluster, forwarder, waiting, turn, domain, metrics }
    }

    async fn respond(&self, request: &Request) -> Response {
        if request.metadata.message_type != MessageType::Query || request.metadata.op_code != OpCode::Query {
            return Response::code(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else { return Response::code(ResponseCode::FormErr) };
        let question = info.query.original();
        let mut response = self.resolve(question.name().clone(), question.query_type()).await;
        take_turns(&mut response.answers, self.turn.fetch_add(1, Ordering::Relaxed));
        response
    }

    fn count(&self, request: &Request, response: &Response, took: std::time::Duration) {
        let kind = request.request_info().map(|info| info.query.query_type());
        self.metrics.answered(&Answered {
            zone: if response.is_forwarded { "." } else { &self.domain },
            is_forwarded: response.is_forwarded,
            is_tcp: request.protocol() != Protocol::Udp,
            is_ipv6: request.src().is_ipv6(),
            kind: kind.unwrap_or(RecordType::ZERO),
            code: response.code,
            took,
        });
    }

    /// Follows aliases inside the cluster, and asks upstream about what is outside.
    async fn resolve(&self, asked: Name, kind: RecordType) -> Response {
        let mut response = Response { is_authoritative: true, ..Response::code(ResponseCode::NoError) };
        let mut name = asked;
        for _ in 0..MAX_ALIASES {
            match self.zone.answer(&*self.cluster, &name, kind) {
                Answer::Records { records, additional } => {
                    response.answers.extend(records);
                    response.additional = additional;
                    return response;
                }
                Answer::NoData => {
                    response.authorities.push(self.zone.soa());
                    return response;
                }
                Answer::NoSuchName => {
                    response.code = ResponseCode::NXDomain;
                    response.authorities.push(self.zone.soa());
                    return response;
                }
                Answer::Alias { record, target } => {
                    response.answers.push(*record);
                    if kind == RecordType::CNAME {
                        return response;
                    }
                    name = target;
                }
                Answer::Elsewhere => {
                    self.forward(&mut response, &name, kind).await;
                    return response;
                }
            }
        }
        Response::code(ResponseCode::ServFail)
    }

    async fn forward(&self, response: &mut Response, name: &Name, kind: RecordType) {
        let Ok(_permit) = self.waiting.try_acquire() else {
            response.code = ResponseCode::ServFail;
            return;
        };
        let forwarded = self.forwarder.ask(name, kind).await;
        response.is_forwarded = response.answers.is_empty();
        response.is_authoritative = !response.answers.is_empty();
        response.code = forwarded.code;
        response.answers.extend(forwarded.answers);
        response.authorities = forwarded.authorities;
    }
}

/// Most askers take the first address. As CoreDNS's plugin `loadbalance`: aliases first, then the addresses, each time
/// from another one on.
fn take_turns(answers: &mut [Record], turn: usize) {
    let is_address = |record: &Record| matches!(record.record_type(), RecordType::A | RecordType::AAAA);
    let aliases = answers.iter().take_while(|record| !is_address(record)).count();
    let addresses = &mut answers[aliases..];
    if !addresses.is_empty() && addresses.iter().all(is_address) {
        let length = addresses.len();
        addresses.rotate_left(turn % length);
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut handle: R,
    ) -> ResponseInfo {
        let begun = tokio::time::Instant::now();
        let response = self.respond(request).await;
        self.count(request, &response, begun.elapsed());
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = response.code;
        metadata.authoritative = response.is_authoritative;
        metadata.recursion_available = true;
        let mut builder = MessageResponseBuilder::from_message_request(request);
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().clamp(512, MAX_UDP_PAYLOAD));
            edns
        });
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let message = builder.build(
            metadata,
            &response.answers,
            &response.authorities,
            std::iter::empty(),
            &response.additional,
        );
        match handle.send_response(message).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, "an answer could not be sent");
                let header = hickory_proto::op::Header { metadata, counts: Default::default() };
                ResponseInfo::from(header)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::{RData, rdata};

    #[test]
    fn addresses_take_turns_in_being_the_first() {
        let name: Name = "web.shop.svc.cluster.local.".parse().unwrap();
        let address =
            |number: u8| Record::from_rdata(name.clone(), 5, RData::A(rdata::A([10, 0, 0, number].into())));
        let alias = Record::from_rdata(name.clone(), 5, RData::CNAME(rdata::CNAME(name.clone())));
        let text = |answers: &[Record], turn| {
            let mut answers = answers.to_vec();
            take_turns(&mut answers, turn);
            let last = |record: &Record| record.data.to_string().rsplit('.').next().map(str::to_owned);
            answers.iter().filter_map(last).collect::<Vec<_>>().join(" ")
        };
        let three = [address(1), address(2), address(3)];
        assert_eq!([0, 1, 2, 3].map(|turn| text(&three, turn)), ["1 2 3", "2 3 1", "3 1 2", "1 2 3"]);
        assert_eq!(text(&[alias.clone(), address(1), address(2)], 1), " 2 1");
        assert_eq!(text(&[alias], 1), "");
        assert_eq!(text(&[], 1), "");
    }
}
