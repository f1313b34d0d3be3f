//! The ways in which a handshake ends badly, in the words that clients react to.

use serde_json::{Map, Value, json};

use crate::base::error::{Error, Kind};
use crate::nodes::device::Wrong;
use crate::nodes::frame;
use crate::nodes::outbox::Event;
use crate::nodes::pairing::{Device, Why, wire};
use crate::nodes::refusal::{Code, Refusal};
use crate::nodes::who::{Role, Scopes};

use super::{PROTOCOL, PROTOCOL_MIN, Refused};

/// Why a client is not let in.
#[derive(Debug)]
pub(super) struct Reason {
    refusal: Refusal,
    close: u16,
    reason: &'static str,
    outcome: &'static str,
    pub(super) announce: Vec<Event>,
}

impl Reason {
    fn new(refusal: Refusal, reason: &'static str, outcome: &'static str) -> Box<Reason> {
        Box::new(Reason { refusal, close: 1008, reason, outcome, announce: Vec::new() })
    }

    /// The request makes no sense.
    pub(super) fn plain(refusal: Refusal, reason: &'static str) -> Box<Reason> {
        Reason::new(refusal, reason, "invalid_request")
    }

    /// As it goes out, in answer to this request.
    pub(super) fn frame(self, id: &str) -> Refused {
        Refused {
            frame: Some(frame::refused(id, &self.refusal)),
            code: self.close,
            reason: self.reason,
            outcome: self.outcome,
            announce: self.announce,
        }
    }
}

/// What came is no frame: there is nothing to answer.
pub(super) fn no_frame(why: &'static str) -> Refused {
    let (outcome, announce) = ("invalid_frame", Vec::new());
    Refused { frame: None, code: 1008, reason: why, outcome, announce }
}

/// Versions that do not meet.
pub(super) fn protocol(min: u32, max: u32) -> Box<Reason> {
    let details = json!({
        "code": "PROTOCOL_MISMATCH",
        "clientMinProtocol": min,
        "clientMaxProtocol": max,
        "expectedProtocol": PROTOCOL,
        "minimumProbeProtocol": PROTOCOL_MIN,
    });
    let refusal = Refusal::invalid("protocol mismatch").with(details);
    let mut reason = Reason::new(refusal, "protocol mismatch", "protocol_mismatch");
    reason.close = 1002;
    reason
}

/// A device that is not who it says.
pub(super) fn device(wrong: Wrong) -> Box<Reason> {
    let details = json!({"code": wrong.code, "reason": wrong.reason});
    Reason::new(Refusal::invalid(wrong.message).with(details), wrong.message, "device_auth")
}

/// A node without an identity.
pub(super) fn no_device() -> Box<Reason> {
    let refusal = Refusal::new(Code::NotPaired, "device identity required")
        .with(json!({"code": "DEVICE_IDENTITY_REQUIRED"}));
    Reason::new(refusal, "device identity required", "device_identity_required")
}

fn unauthorized(
    (code, why): (&'static str, &'static str),
    message: &'static str,
    reason: &'static str,
    next: &'static str,
    with_device_token: bool,
) -> Box<Reason> {
    let details = json!({
        "code": code,
        "authReason": why,
        "canRetryWithDeviceToken": with_device_token,
        "recommendedNextStep": next,
    });
    Reason::new(Refusal::invalid(message).with(details), reason, why)
}

/// A token that opens nothing; `paired`: the device may have one of its own that does.
pub(super) fn wrong_token(paired: bool) -> Box<Reason> {
    unauthorized(
        ("AUTH_TOKEN_MISMATCH", "token_mismatch"),
        "unauthorized: gateway token mismatch (send nodes.token, or the key of a [[key]], of the \
         gateway's configuration)",
        "unauthorized: gateway token mismatch",
        if paired { "retry_with_device_token" } else { "update_auth_credentials" },
        paired,
    )
}

/// A device token that is not this device's, for this role.
pub(super) fn wrong_device_token() -> Box<Reason> {
    unauthorized(
        ("AUTH_DEVICE_TOKEN_MISMATCH", "device_token_mismatch"),
        "unauthorized: device token mismatch (make a new one: tidegate devices rotate)",
        "unauthorized: device token mismatch",
        "update_auth_credentials",
        false,
    )
}

/// A wrong password.
pub(super) fn wrong_password() -> Box<Reason> {
    unauthorized(
        ("AUTH_PASSWORD_MISMATCH", "password_mismatch"),
        "unauthorized: gateway password mismatch (send nodes.password of the gateway's \
         configuration)",
        "unauthorized: gateway password mismatch",
        "update_auth_credentials",
        false,
    )
}

/// No secret at all, or none that could be one; `password`: only a password is configured.
pub(super) fn nothing_shown(password: bool) -> Box<Reason> {
    match password {
        true => unauthorized(
            ("AUTH_PASSWORD_MISSING", "password_missing"),
            "unauthorized: gateway password missing (send it as auth.password)",
            "unauthorized: gateway password missing",
            "update_auth_configuration",
            false,
        ),
        false => unauthorized(
            ("AUTH_TOKEN_MISSING", "token_missing"),
            "unauthorized: gateway token missing (send it as auth.token)",
            "unauthorized: gateway token missing",
            "update_auth_configuration",
            false,
        ),
    }
}

/// A device token with fewer rights than are asked for, which the device was approved for.
pub(super) fn narrow_token() -> Box<Reason> {
    unauthorized(
        ("AUTH_SCOPE_MISMATCH", "scope_mismatch"),
        "unauthorized: device token scope mismatch (make a new one: tidegate devices rotate)",
        "unauthorized: device token scope mismatch",
        "review_auth_configuration",
        false,
    )
}

/// A secret that is not listened to now, or not any more.
pub(super) fn secret(error: Error) -> Box<Reason> {
    if error.kind() != Kind::LockedOut {
        return wrong_token(false);
    }
    let mut reason = unauthorized(
        ("AUTH_RATE_LIMITED", "rate_limited"),
        "unauthorized: too many failed authentication attempts (retry later)",
        "unauthorized: too many failed attempts",
        "wait_then_retry",
        false,
    );
    reason.refusal.retry_after = error.asked_wait();
    reason
}

/// The devices cannot be read: nobody can tell who this is.
pub(super) fn store(error: &Error) -> Box<Reason> {
    let text = format!("paired devices cannot be looked up now: {error}");
    let mut refusal = Refusal::unavailable(text).with(json!({"reason": error.row().code}));
    refusal.retry_after = Some(std::time::Duration::from_secs(5));
    let mut reason = Reason::new(refusal, "paired devices cannot be looked up", "store");
    reason.close = 1013;
    reason
}

/// Too many wait already.
pub(super) fn full(error: Error, why: Why, device: &str) -> Box<Reason> {
    let mut details = details(why, device);
    details.insert("remediationHint".to_owned(), error.to_string().into());
    let refusal = Refusal::new(Code::NotPaired, text(why)).with(Value::Object(details));
    Reason::new(refusal, text(why), "pairings_full")
}

/// The device has to be approved by an operator.
pub(super) fn pairing(
    why: Why,
    request: Option<&str>,
    role: Role,
    scopes: Scopes,
    device: &str,
    known: Option<&Device>,
) -> Box<Reason> {
    let mut details = details(why, device);
    let mut put = |key: &str, value: Value| details.insert(key.to_owned(), value);
    if let Some(request) = request {
        put("requestId", request.into());
        let hint = format!("approve it at the gateway: tidegate devices approve {request}");
        put("remediationHint", hint.into());
    }
    put("requestedRole", role.as_str().into());
    if !scopes.is_empty() {
        put("requestedScopes", wire::words(scopes));
    }
    if let Some(known) = known {
        let roles: Vec<&str> = known.grants.iter().map(|grant| grant.role.as_str()).collect();
        put("approvedRoles", roles.into());
        if let Some(grant) = known.grant(Role::Operator).filter(|grant| !grant.scopes.is_empty()) {
            put("approvedScopes", wire::words(grant.scopes));
        }
    }
    let refusal = Refusal::new(Code::NotPaired, text(why)).with(Value::Object(details));
    Reason::new(refusal, text(why), "pairing_required")
}

/// The client waits and tries again by itself: it is let in once it is approved.
fn details(why: Why, device: &str) -> Map<String, Value> {
    let details = json!({
        "code": "PAIRING_REQUIRED",
        "reason": why.as_str(),
        "recommendedNextStep": "wait_then_retry",
        "retryable": true,
        "pauseReconnect": false,
        "deviceId": device,
    });
    match details {
        Value::Object(details) => details,
        _ => Map::new(),
    }
}

fn text(why: Why) -> &'static str {
    match why {
        Why::NotPaired | Why::Commands => "pairing required: device is not approved yet",
        Why::Role => "pairing required: device is asking for a higher role than currently approved",
        Why::Scopes => "pairing required: device is asking for more scopes than currently approved",
    }
}
