//! The opening handshake: whether a request may become a WebSocket, and the 101.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tungstenite::handshake::derive_accept_key;

use crate::base::error::{Error, Kind};
use crate::net::conn::Current;
use crate::net::date;
use crate::net::http::{BodyLength, Head, Method};
use crate::net::http1::{self, Connection};

/// The one version there is (RFC 6455, 4.1).
const VERSION: &str = "13";

/// Bytes of the client's nonce.
const NONCE_BYTES: usize = 16;

/// A request that may become a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept {
    /// `Sec-WebSocket-Accept`.
    key: String,
}

/// Whether the request asks for a WebSocket at all; [`accept`] says whether it does so rightly.
pub fn wanted(head: &Head) -> bool {
    has_token(head, "upgrade", "websocket")
}

/// Checks the opening handshake (RFC 6455, 4.2.1).
///
/// # Errors
/// [`Kind::WebSocketVersion`] (426) for another version than 13, [`Kind::BadRequest`] for whatever
/// else is not as it must be.
pub fn accept(head: &Head) -> Result<Accept, Error> {
    let bad = |what: &'static str| Err(Error::new(Kind::BadRequest, what));
    if head.method != Method::Get || !head.http11 || head.body != BodyLength::None {
        return bad("a WebSocket is opened with a GET request of HTTP/1.1 without a body");
    }
    if !wanted(head) {
        return bad("the Upgrade field does not name websocket");
    }
    if !has_token(head, "connection", "upgrade") {
        return bad("the Connection field does not name upgrade");
    }
    if only(head, "sec-websocket-version") != Some(VERSION.as_bytes()) {
        let context = "this server speaks version 13 of WebSocket (Sec-WebSocket-Version)";
        return Err(Error::new(Kind::WebSocketVersion, context));
    }
    let key = only(head, "sec-websocket-key").unwrap_or_default();
    if STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == NONCE_BYTES) {
        Ok(Accept { key: derive_accept_key(key) })
    } else {
        bad("Sec-WebSocket-Key is not one field with 16 bytes in base64")
    }
}

impl Accept {
    /// The 101 as bytes.
    pub(in crate::net) fn head(&self, current: &Current) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        let date = date::now();
        let fields = [
            ("upgrade", &b"websocket"[..]),
            ("sec-websocket-accept", self.key.as_bytes()),
            ("x-request-id", current.id.as_str().as_bytes()),
            ("date", &date[..]),
        ];
        let (body, connection) = (BodyLength::None, Connection::Upgrade);
        http1::write_response_head(&mut out, 101, body, connection, fields);
        out
    }
}

/// Whether a list field has this token, whatever its case and in however many lines.
fn has_token(head: &Head, name: &str, token: &str) -> bool {
    let values = head.headers.iter().filter(|(have, _)| have.eq_ignore_ascii_case(name));
    let mut tokens = values.flat_map(|(_, value)| value.split(|b| *b == b','));
    tokens.any(|have| have.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// The value of a field that is there exactly once.
fn only<'a>(head: &'a Head, name: &str) -> Option<&'a [u8]> {
    let mut values = head.headers.iter().filter(|(have, _)| have.eq_ignore_ascii_case(name));
    let (_, value) = values.next()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::RequestId;
    use crate::net::http1::{HeadLimits, request_head};

    const GOOD: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Version: 13\r\n\r\n";

    fn of(text: &str) -> Result<Accept, Error> {
        let limits = HeadLimits { head_max: 16 << 10, headers_max: 100, target_max: 1 << 10 };
        let (head, _) = request_head(text.as_bytes(), &mut 0, &limits).unwrap().unwrap();
        accept(&head)
    }

    #[test]
    fn the_example_of_the_standard_is_answered_as_the_standard_has_it() {
        let accept = of(GOOD).unwrap();
        let text = accept.head(&Current::lost(RequestId::generate()));
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n"));
        assert!(text.contains("\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        assert!(text.ends_with("\r\nconnection: upgrade\r\n\r\n"), "{text}");
        assert!(!text.contains("content-length"));
    }

    #[test]
    fn tokens_are_found_in_lists_and_whatever_their_case() {
        let fine = [
            GOOD.replace("websocket\r\n", "h2c, WebSocket\r\n"),
            GOOD.replace("Connection: Upgrade", "Connection: keep-alive, Upgrade"),
            GOOD.replace("Connection: Upgrade", "Connection: keep-alive\r\nConnection: UPGRADE"),
        ];
        for text in fine {
            assert!(of(&text).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_is_no_opening_handshake_is_refused() {
        let check = |from: &str, to: &str, status| {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD);
            assert_eq!(of(&text).unwrap_err().row().status, status, "{text}");
        };
        check("GET", "POST", 400);
        check("HTTP/1.1", "HTTP/1.0", 400);
        check("Host", "Content-Length: 2\r\nHost", 400);
        check("Upgrade: websocket", "Upgrade: websockets", 400);
        check("Connection: Upgrade", "Connection: close", 400);
        check("Version: 13", "Version: 8", 426);
        check("Version: 13", "Version: 13\r\nSec-WebSocket-Version: 8", 426);
        check("Sec-WebSocket-Version: 13\r\n", "", 426);
        check("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ", 400);
        check("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j", 400);
        check("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 400);
        check("Host", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nHost", 400);
    }
}
