use super::*;
use crate::base::orders::{Desk, Order};
use crate::net::control::Caller;

fn call(method: Method, path: &str, body: &str) -> Call {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let caller = Caller { uid: 7, pid: 42 };
    let (path, query, body) = (path.to_owned(), query.to_owned(), body.as_bytes().to_vec());
    Call { method, path, query, body, caller }
}

fn answer(handler: &ControlHandler, call: &Call) -> (u16, Value) {
    let Reply::Whole(response) = handler.answer(call) else { panic!("a stream") };
    (response.status, serde_json::from_slice(&response.body).unwrap_or(Value::Null))
}

#[test]
fn what_the_ops_plane_shows_is_shown_here_too() {
    let handler = ControlHandler::new(Parts::bare());
    let (status, limits) = answer(&handler, &call(Method::Get, "/limits", ""));
    assert_eq!(status, 200);
    assert!(limits["limits"].is_array());
    let (status, problem) = answer(&handler, &call(Method::Get, "/nowhere", ""));
    assert_eq!((status, &problem["code"]), (404, &json!("not_found")));
}

#[test]
fn an_order_leaves_an_event_with_who_asked_and_what_came_of_it() {
    let mut parts = Parts::bare();
    let (desk, orders) = Desk::new(&parts.registry);
    parts.desk = desk;
    let handler = ControlHandler::new(parts.clone());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let asked = orders.recv().unwrap();
            assert_eq!(asked.order, Order::Reopen);
            asked.answer(Ok(json!({"reopened": true})));
            let asked = orders.recv().unwrap();
            asked.answer(Err(Error::new(Kind::InvalidConfig, "line 3 is wrong")));
        });
        assert_eq!(answer(&handler, &call(Method::Post, "/reopen", "")).0, 200);
        assert_eq!(answer(&handler, &call(Method::Post, "/reload", "{}")).0, 422);
    });
    let told: Vec<_> = parts
        .events
        .recent()
        .into_iter()
        .map(|event| (event.kind, event.subject, event.level, event.detail))
        .collect();
    let refused = "by uid=7 pid=42: refused, code=invalid_config: line 3 is wrong";
    assert_eq!(
        told,
        [
            (ORDERED, "/reopen".into(), log::Level::Info, "by uid=7 pid=42: done".into()),
            (ORDERED, "/reload".into(), log::Level::Warn, refused.into()),
        ]
    );
}

#[test]
fn what_is_no_order_is_refused_and_changes_nothing() {
    let handler = ControlHandler::new(Parts::bare());
    let check = |method, path: &str, body: &str, status: u16, code: &str| {
        let (found, problem) = answer(&handler, &call(method, path, body));
        assert_eq!((found, problem["code"].as_str()), (status, Some(code)), "{path} {body}");
    };
    check(Method::Post, "/reload", "{", 400, "invalid_json");
    check(Method::Post, "/reload", "[]", 400, "invalid_json");
    check(Method::Delete, "/reload", "", 405, "method_not_allowed");
    check(Method::Post, "/limits", "", 405, "method_not_allowed");
    check(Method::Get, "/reload", "", 404, "not_found");
    // Nobody takes orders here.
    check(Method::Post, "/stop", "", 503, "draining");
}

#[test]
fn each_route_is_there_once() {
    let mut all: Vec<_> =
        TABLE.iter().copied().flatten().map(|r| (r.path, r.method.as_str())).collect();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
}
