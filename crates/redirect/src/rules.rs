//! The table `inet cinch` as a list of requests, made from the configuration alone.
//!
//! Every rule carries a comment that holds what it depends on; the comments in order are how a table is
//! recognised as ours and current.

use crate::netlink::{Attributes, Request, attribute};
use crate::nftables::*;
use crate::{Exempt, RedirectConfig};

const TABLE: &str = "cinch";
const OUTPUT: &str = "output";
const PREROUTING: &str = "prerouting";
const INVALID: &str = "invalid";
const INPUT: &str = "input";

/// Comment attribute in a rule's user data, as the nft program writes and shows it.
const COMMENT: u8 = 0;

// Flags of a request (linux/netlink.h).
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

struct Rule {
    chain: &'static str,
    comment: String,
    expressions: Expressions,
}

impl Rule {
    fn new(chain: &'static str, comment: impl Into<String>, expressions: Expressions) -> Self {
        Self { chain, comment: comment.into(), expressions }
    }
}

/// Destinations that never leave the host or the link: family, network and mask, and their names.
fn never_captured() -> Vec<Rule> {
    /// An IPv6 address of two bytes, then zeroes, then one byte.
    fn v6(first: u8, second: u8, last: u8) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes.splice(..2, [first, second]);
        bytes.splice(15.., [last]);
        bytes
    }
    let ranges = [
        ("loopback 127.0.0.0/8", NFPROTO_IPV4, vec![127, 0, 0, 0], vec![255, 0, 0, 0]),
        ("link-local 169.254.0.0/16", NFPROTO_IPV4, vec![169, 254, 0, 0], vec![255, 255, 0, 0]),
        ("multicast 224.0.0.0/4", NFPROTO_IPV4, vec![224, 0, 0, 0], vec![240, 0, 0, 0]),
        ("loopback ::1", NFPROTO_IPV6, v6(0, 0, 1), vec![255; 16]),
        ("link-local fe80::/10", NFPROTO_IPV6, v6(0xfe, 0x80, 0), v6(0xff, 0xc0, 0)),
        ("multicast ff00::/8", NFPROTO_IPV6, v6(0xff, 0, 0), v6(0xff, 0, 0)),
    ];
    let rule = |(name, family, network, mask): (&str, u8, Vec<u8>, Vec<u8>)| {
        Rule::new(
            OUTPUT,
            format!("leave {name}"),
            Expressions::new().destination(family, &network, &mask).leave(),
        )
    };
    ranges.into_iter().map(rule).collect()
}

fn leave_the_proxy(exempt: Exempt) -> Expressions {
    match exempt {
        Exempt::User(uid) => Expressions::new().user(uid).leave(),
        Exempt::Cgroup { id, level } => Expressions::new().cgroup(id, level).leave(),
    }
}

/// The rules in the order in which they are evaluated.
///
/// Only SYN segments are redirected: a table that enters a live namespace meets connections in mid-stream,
/// and their next segment would be taken for the first of a new connection.
fn rules(config: &RedirectConfig) -> Vec<Rule> {
    let e = Expressions::new;
    let (inbound, outbound) = (config.inbound_port, config.outbound_port);
    let self_test = config.self_test.octets();
    let mut rules = vec![
        Rule::new(
            OUTPUT,
            format!("self-test {} to {outbound}", config.self_test),
            e().destination(NFPROTO_IPV4, &self_test, &[255; 4]).tcp_syn().redirect(outbound),
        ),
        Rule::new(OUTPUT, format!("leave the proxy, {}", config.exempt), leave_the_proxy(config.exempt)),
        Rule::new(OUTPUT, "leave what goes to lo", e().out_to_loopback().leave()),
    ];
    rules.extend(never_captured());
    rules.extend([
        Rule::new(OUTPUT, "leave own addresses", e().destination_is_local().leave()),
        Rule::new(OUTPUT, format!("capture to {outbound}"), e().tcp_syn().redirect(outbound)),
        Rule::new(PREROUTING, "leave what comes from lo", e().in_from_loopback().leave()),
        Rule::new(
            PREROUTING,
            format!("capture to {inbound}"),
            e().tcp_syn().destination_is_local().redirect(inbound),
        ),
        // A segment that conntrack can't place would reach the stack untranslated and be answered by a
        // reset from the wrong port.
        Rule::new(INVALID, "leave what comes from lo", e().in_from_loopback().leave()),
        Rule::new(INVALID, "drop invalid", e().tcp().invalid().drop()),
        // Translation is decided once for a connection, by the first segment that conntrack takes for it, and a
        // stray ACK can be that. The SYN behind it would come through untranslated: it must not reach an app.
        Rule::new(INPUT, "leave what comes from lo", e().in_from_loopback().leave()),
        Rule::new(INPUT, format!("drop past {inbound}"), e().tcp_syn().not_to_port(inbound).drop()),
    ]);
    rules
}

fn table(kind: u16, flags: u16, label: &str) -> Request {
    let attributes = Attributes::new().text(TABLE_NAME, TABLE);
    Request {
        kind,
        flags,
        family: NFPROTO_INET,
        attributes,
        label: format!("to {label} the table inet {TABLE}"),
    }
}

fn chain(name: &str, kind: &str, hook: u32, priority: i32) -> Request {
    let hook = Attributes::new().u32(HOOK_NUMBER, hook).bytes(HOOK_PRIORITY, &priority.to_be_bytes());
    let attributes = Attributes::new()
        .text(CHAIN_TABLE, TABLE)
        .text(CHAIN_NAME, name)
        .nested(CHAIN_HOOK, hook)
        .u32(CHAIN_POLICY, POLICY_ACCEPT)
        .text(CHAIN_TYPE, kind);
    let label = format!("the chain {name} (type {kind})");
    Request { kind: MSG_NEWCHAIN, flags: NLM_F_CREATE, family: NFPROTO_INET, attributes, label }
}

fn user_data(comment: &str) -> Vec<u8> {
    let mut data = vec![COMMENT, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
    data.extend_from_slice(comment.as_bytes());
    data.push(0);
    data
}

fn rule(rule: Rule) -> Request {
    let attributes = Attributes::new()
        .text(RULE_TABLE, TABLE)
        .text(RULE_CHAIN, rule.chain)
        .nested(RULE_EXPRESSIONS, rule.expressions.into_attributes())
        .and(Attributes::new().bytes(RULE_USERDATA, &user_data(&rule.comment)));
    let label = format!("the rule {:?} of the chain {}", rule.comment, rule.chain);
    let flags = NLM_F_CREATE | NLM_F_APPEND;
    Request { kind: MSG_NEWRULE, flags, family: NFPROTO_INET, attributes, label }
}

/// Removes the table if it is there: deleting what doesn't exist would fail the batch, so it is made first.
pub(crate) fn remove_table() -> Vec<Request> {
    vec![table(MSG_NEWTABLE, NLM_F_CREATE, "make"), table(MSG_DELTABLE, 0, "delete")]
}

/// The whole table, in place of whatever had its name.
pub(crate) fn replace_table(config: &RedirectConfig) -> Vec<Request> {
    let mut requests = remove_table();
    requests.extend([
        table(MSG_NEWTABLE, NLM_F_CREATE, "make"),
        chain(OUTPUT, "nat", HOOK_OUTPUT, PRIORITY_DSTNAT),
        chain(PREROUTING, "nat", HOOK_PREROUTING, PRIORITY_DSTNAT),
        chain(INVALID, "filter", HOOK_PREROUTING, PRIORITY_MANGLE),
        chain(INPUT, "filter", HOOK_INPUT, PRIORITY_FILTER),
    ]);
    requests.extend(rules(config).into_iter().map(rule));
    requests
}

/// Asks for every rule of the table.
pub(crate) fn list_rules() -> Request {
    let attributes = Attributes::new().text(RULE_TABLE, TABLE);
    let label = format!("to list the rules of inet {TABLE}");
    Request { kind: MSG_GETRULE, flags: 0, family: NFPROTO_INET, attributes, label }
}

/// `chain: comment` of a dumped rule; `None` for rules of other tables.
pub(crate) fn rule_label(message: &[u8]) -> Option<String> {
    let text =
        |kind| attribute(message, kind).map(|v| String::from_utf8_lossy(v).trim_end_matches('\0').to_owned());
    if text(RULE_TABLE)? != TABLE {
        return None;
    }
    let data = attribute(message, RULE_USERDATA).unwrap_or_default();
    let comment = data.get(2..).unwrap_or_default();
    Some(format!("{}: {}", text(RULE_CHAIN)?, String::from_utf8_lossy(comment).trim_end_matches('\0')))
}

/// What [`rule_label`] says of each rule of a table that is in force.
pub(crate) fn expected_labels(config: &RedirectConfig) -> Vec<String> {
    rules(config).iter().map(|rule| format!("{}: {}", rule.chain, rule.comment)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_self_test_comes_before_every_exemption() {
        let labels = expected_labels(&RedirectConfig::default());
        assert_eq!(labels[0], "output: self-test 192.0.2.1 to 15001");
        assert_eq!(labels[1], "output: leave the proxy, uid 1507");
        let last = labels.iter().rposition(|l| l.starts_with("output")).unwrap();
        assert_eq!(labels[last], "output: capture to 15001");
    }

    #[test]
    fn comments_fit_their_length_byte() {
        for exempt in [Exempt::User(u32::MAX), Exempt::Cgroup { id: u64::MAX, level: u32::MAX }] {
            for rule in rules(&RedirectConfig { exempt, ..RedirectConfig::default() }) {
                assert!(rule.comment.len() < 120, "{}", rule.comment);
            }
        }
    }

    #[test]
    fn a_table_for_another_cgroup_or_level_is_told_apart() {
        let labels = |exempt| expected_labels(&RedirectConfig { exempt, ..RedirectConfig::default() });
        let one = labels(Exempt::Cgroup { id: 9886, level: 5 });
        assert_eq!(one[1], "output: leave the proxy, cgroup 9886 at level 5");
        for other in [
            Exempt::Cgroup { id: 10399, level: 5 },
            Exempt::Cgroup { id: 9886, level: 4 },
            Exempt::User(9886),
        ] {
            assert_ne!(labels(other), one);
        }
    }
}
