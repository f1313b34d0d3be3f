//! ureq's errors as ours.

use std::io::ErrorKind;

use ureq::Timeout;

use super::connector::Handshake;
use crate::base::error::{Error, Kind, Phase};

/// What an error of a call to `upstream` is.
pub(super) fn error(upstream: &str, error: ureq::Error) -> Error {
    let kind = match error {
        ureq::Error::Other(inner) => match inner.downcast::<Error>() {
            // The resolver's, which says everything already.
            Ok(error) => return *error,
            Err(inner) => {
                let handshake = inner.is::<Handshake>() || inner.is::<rustls::Error>();
                let kind = if handshake { Kind::UpstreamConnect } else { Kind::UpstreamMalformed };
                return Error::new(kind, said(upstream, kind)).because(inner);
            }
        },
        ureq::Error::Timeout(phase) => Kind::UpstreamTimeout(match phase {
            Timeout::Resolve => Phase::Resolve,
            Timeout::Connect => Phase::Connect,
            _ => Phase::Answer,
        }),
        ureq::Error::Io(ref error) => match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                Kind::UpstreamCut
            }
            _ => Kind::UpstreamConnect,
        },
        // Nothing of ours is in it: the address was checked at load, so it can only be the key.
        ureq::Error::Http(_) => {
            let what = format!("upstream {upstream}: its key holds what no header field may hold");
            return Error::new(Kind::Internal, what);
        }
        ureq::Error::BodyExceedsLimit(_) => {
            let what = format!("the answer of upstream {upstream} is too large");
            return Error::new(Kind::UpstreamMalformed, what);
        }
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::ConnectProxyFailed(_)
        | ureq::Error::Tls(_)
        | ureq::Error::TlsRequired => Kind::UpstreamConnect,
        _ => Kind::UpstreamMalformed,
    };
    let ours = Error::new(kind, said(upstream, kind));
    match error {
        // Its own words put `io: ` before those of the system.
        ureq::Error::Io(error) => ours.because(error),
        error => ours.because(error),
    }
}

fn said(upstream: &str, kind: Kind) -> String {
    match kind {
        Kind::UpstreamTimeout(Phase::Resolve | Phase::Connect) => {
            format!("upstream {upstream} cannot be reached within connect_timeout")
        }
        Kind::UpstreamTimeout(_) => format!("upstream {upstream} did not answer in time"),
        Kind::UpstreamConnect => format!("no connection to upstream {upstream}"),
        Kind::UpstreamCut => format!("upstream {upstream} broke its answer off"),
        _ => format!("the answer of upstream {upstream} is not HTTP as it should be"),
    }
}
