//! The part of nf_tables' vocabulary that the redirect needs: numbers from linux/netfilter/nf_tables.h, and
//! expressions as attribute lists.

use crate::netlink::Attributes;

pub(crate) const NFPROTO_INET: u8 = 1;
pub(crate) const NFPROTO_IPV4: u8 = 2;
pub(crate) const NFPROTO_IPV6: u8 = 10;

pub(crate) const MSG_NEWTABLE: u16 = 0;
pub(crate) const MSG_DELTABLE: u16 = 2;
pub(crate) const MSG_NEWCHAIN: u16 = 3;
pub(crate) const MSG_NEWRULE: u16 = 6;
pub(crate) const MSG_GETRULE: u16 = 7;

pub(crate) const TABLE_NAME: u16 = 1;
pub(crate) const CHAIN_TABLE: u16 = 1;
pub(crate) const CHAIN_NAME: u16 = 3;
pub(crate) const CHAIN_HOOK: u16 = 4;
pub(crate) const CHAIN_POLICY: u16 = 5;
pub(crate) const CHAIN_TYPE: u16 = 7;
pub(crate) const HOOK_NUMBER: u16 = 1;
pub(crate) const HOOK_PRIORITY: u16 = 2;
pub(crate) const RULE_TABLE: u16 = 1;
pub(crate) const RULE_CHAIN: u16 = 2;
pub(crate) const RULE_EXPRESSIONS: u16 = 4;
pub(crate) const RULE_USERDATA: u16 = 7;

pub(crate) const HOOK_PREROUTING: u32 = 0;
pub(crate) const HOOK_INPUT: u32 = 1;
pub(crate) const HOOK_OUTPUT: u32 = 3;
/// `dstnat`: where destinations are translated.
pub(crate) const PRIORITY_DSTNAT: i32 = -100;
/// `mangle`: after connection tracking (-200) and before translation.
pub(crate) const PRIORITY_MANGLE: i32 = -150;
/// `filter`: after translation.
pub(crate) const PRIORITY_FILTER: i32 = 0;

const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_RETURN: i32 = -5;

/// The default verdict of a chain.
pub(crate) const POLICY_ACCEPT: u32 = NF_ACCEPT;

const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const REGISTER_VERDICT: u32 = 0;
const REGISTER_1: u32 = 1;

const META_OIFTYPE: u32 = 9;
const META_IIFTYPE: u32 = 8;
const META_SKUID: u32 = 10;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
/// `lo` has this type under any name (linux/if_arp.h).
const ARPHRD_LOOPBACK: u16 = 772;

const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;
const FIB_RESULT_ADDRESS_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 1 << 1;
const RTN_LOCAL: u32 = 2;
/// `NFT_SOCKET_CGROUPV2`
const SOCKET_CGROUPV2: u32 = 3;
const CT_STATE: u32 = 0;
const CT_STATE_INVALID: u32 = 1;

/// A list of expressions under construction: one rule's conditions and its verdict.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expressions(Attributes);

impl Expressions {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The value of a rule's expression attribute.
    pub(crate) fn into_attributes(self) -> Attributes {
        self.0
    }

    fn push(self, name: &str, data: Attributes) -> Self {
        let expression = Attributes::new().text(EXPRESSION_NAME, name).nested(EXPRESSION_DATA, data);
        Self(self.0.nested(LIST_ELEMENT, expression))
    }

    fn meta(self, key: u32) -> Self {
        self.push("meta", Attributes::new().u32(1, REGISTER_1).u32(2, key))
    }

    fn payload(self, base: u32, offset: u32, length: u32) -> Self {
        self.push("payload", Attributes::new().u32(1, REGISTER_1).u32(2, base).u32(3, offset).u32(4, length))
    }

    fn equals(self, value: &[u8]) -> Self {
        self.compare(0, value)
    }

    fn differs(self, value: &[u8]) -> Self {
        self.compare(1, value)
    }

    fn compare(self, operator: u32, value: &[u8]) -> Self {
        let value = Attributes::new().bytes(DATA_VALUE, value);
        self.push("cmp", Attributes::new().u32(1, REGISTER_1).u32(2, operator).nested(3, value))
    }

    fn mask(self, mask: &[u8]) -> Self {
        let none = Attributes::new().bytes(DATA_VALUE, &vec![0; mask.len()]);
        let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        let data = Attributes::new().u32(1, REGISTER_1).u32(2, REGISTER_1).u32(3, length);
        let mask = Attributes::new().bytes(DATA_VALUE, mask);
        self.push("bitwise", data.nested(4, mask).nested(5, none))
    }

    /// `meta nfproto ipv4|ipv6`
    pub(crate) fn family(self, family: u8) -> Self {
        self.meta(META_NFPROTO).equals(&[family])
    }

    /// `meta l4proto tcp`
    pub(crate) fn tcp(self) -> Self {
        self.meta(META_L4PROTO).equals(&[6])
    }

    /// `tcp flags & (fin|syn|rst|ack) == syn`
    pub(crate) fn tcp_syn(self) -> Self {
        self.tcp().payload(PAYLOAD_TRANSPORT, 13, 1).mask(&[0x17]).equals(&[0x02])
    }

    /// `tcp dport != port`
    pub(crate) fn not_to_port(self, port: u16) -> Self {
        self.payload(PAYLOAD_TRANSPORT, 2, 2).differs(&port.to_be_bytes())
    }

    /// `meta skuid`; the socket's user in host order.
    pub(crate) fn user(self, uid: u32) -> Self {
        self.meta(META_SKUID).equals(&uid.to_ne_bytes())
    }

    /// `socket cgroupv2 level`: the socket's ancestor at `level` has the number `id` (both in host order; the
    /// level is counted from the root of the cgroup namespace of whoever loads the rule).
    pub(crate) fn cgroup(self, id: u64, level: u32) -> Self {
        let data = Attributes::new().u32(1, SOCKET_CGROUPV2).u32(2, REGISTER_1).u32(3, level);
        self.push("socket", data).equals(&id.to_ne_bytes())
    }

    /// `oiftype loopback`
    pub(crate) fn out_to_loopback(self) -> Self {
        self.meta(META_OIFTYPE).equals(&ARPHRD_LOOPBACK.to_ne_bytes())
    }

    /// `iiftype loopback`
    pub(crate) fn in_from_loopback(self) -> Self {
        self.meta(META_IIFTYPE).equals(&ARPHRD_LOOPBACK.to_ne_bytes())
    }

    /// `ip daddr` or `ip6 daddr`: the bits of `mask` must be as in `network`.
    pub(crate) fn destination(self, family: u8, network: &[u8], mask: &[u8]) -> Self {
        let offset = if family == NFPROTO_IPV4 { 16 } else { 24 };
        let length = u32::try_from(network.len()).unwrap_or(u32::MAX);
        let loaded = self.family(family).payload(PAYLOAD_NETWORK, offset, length);
        let masked = if mask.iter().all(|byte| *byte == 0xff) { loaded } else { loaded.mask(mask) };
        masked.equals(network)
    }

    /// `fib daddr type local`: the address is one of this namespace's own.
    pub(crate) fn destination_is_local(self) -> Self {
        let data =
            Attributes::new().u32(1, REGISTER_1).u32(2, FIB_RESULT_ADDRESS_TYPE).u32(3, FIB_DESTINATION);
        self.push("fib", data).equals(&RTN_LOCAL.to_ne_bytes())
    }

    /// `ct state invalid`
    pub(crate) fn invalid(self) -> Self {
        let state = self.push("ct", Attributes::new().u32(1, REGISTER_1).u32(2, CT_STATE));
        state.mask(&CT_STATE_INVALID.to_ne_bytes()).differs(&[0; 4])
    }

    fn verdict(self, code: u32) -> Self {
        let verdict = Attributes::new().u32(VERDICT_CODE, code);
        let data = Attributes::new().nested(DATA_VERDICT, verdict);
        self.push("immediate", Attributes::new().u32(1, REGISTER_VERDICT).nested(2, data))
    }

    /// `return`: in a base chain the packet goes on untouched.
    pub(crate) fn leave(self) -> Self {
        self.verdict(NFT_RETURN.cast_unsigned())
    }

    /// `drop`
    pub(crate) fn drop(self) -> Self {
        self.verdict(NF_DROP)
    }

    /// `redirect to :port`
    pub(crate) fn redirect(self, port: u16) -> Self {
        let value = Attributes::new().bytes(DATA_VALUE, &port.to_be_bytes());
        let loaded = self.push("immediate", Attributes::new().u32(1, REGISTER_1).nested(2, value));
        loaded.push("redir", Attributes::new().u32(1, REGISTER_1))
    }
}
