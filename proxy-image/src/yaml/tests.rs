use super::*;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn value(text: &str) -> Value {
    one(text).unwrap()
}

fn wrong(text: &str) -> String {
    one::<Value>(text).unwrap_err().to_string()
}

#[test]
fn a_tree_is_what_another_reader_makes_of_it() {
    for text in [
        "",
        "a: b",
        "\u{feff}a: b",
        "a: [1, two, 3.5, -4, true, ~, \"5\", 'it''s', \"\\u00e9\\n\"]\nb: {c: {}, d: []}",
        "- yes\n- No\n- on\n- n\n- True\n- null\n- Null\n-\n- ''",
        "- 0\n- 007\n- 0x1F\n- 0o17\n- 0b101\n- 1_000\n- 1__0\n- _1\n- +5\n- -5\n- 18446744073709551615\n- -9223372036854775808",
        "- 18446744073709551616\n- 1.\n- .5\n- 1e3\n- 1.2.3\n- 10.0.0.1\n- 10.0.0.0/8\n- inf\n- nan\n- 12s\n- 1:30\n- -",
        "text: |\n  two\n  lines\nfolded: >-\n  one\n  line\n",
        "base: &base {a: 1, b: [x, &y z]}\nagain: *base\nlast: *y\n",
        "? a\n: b\n? c\n",
        "8080: http\n\"8081\": tcp\n",
        "tagged: !!str 5\n",
        "a: b # a comment\n# another\nc: d\n",
        "{\"json\": [1, {\"a\": null}]}",
    ] {
        assert_eq!(value(text), serde_saphyr::from_str::<Value>(text).unwrap(), "{text}");
    }
    let several = "a: 1\n---\n---\nb: 2\n...\n---\nc: 3\n";
    assert_eq!(
        all::<Value>(several).unwrap(),
        [json!({"a": 1}), Value::Null, json!({"b": 2}), json!({"c": 3})]
    );
    assert!(all::<Value>("").unwrap().is_empty());
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    name: String,
    #[serde(default)]
    number: u16,
    flag: Option<bool>,
    #[serde(default)]
    kinds: Vec<Kind>,
    #[serde(default)]
    ports: BTreeMap<u16, String>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    One,
    Two,
}

#[test]
fn where_a_type_is_asked_for_it_is_read_as_that() {
    let read =
        one::<Settings>("name: 1.10\nnumber: \"8\"\nflag: off\nkinds: [one, \"two\"]\nports: {80: yes}");
    let ports = BTreeMap::from([(80, "yes".to_owned())]);
    let kinds = vec![Kind::One, Kind::Two];
    assert_eq!(read, Ok(Settings { name: "1.10".into(), number: 8, flag: Some(false), kinds, ports }));
    assert_eq!(one::<Settings>("{name: a, flag: ~}").unwrap().flag, None);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    for (text, error) in [
        ("name: a\nnumber: many\n", "line 2, column 9: number: invalid type: string \"many\", expected u16"),
        (
            "name: a\nnumber: 70000\n",
            "line 2, column 9: number: invalid value: integer `70000`, expected u16",
        ),
        (
            "name: a\nports: {http: b}\n",
            "line 2, column 9: ports: invalid type: string \"http\", expected u16",
        ),
        ("name: ~\n", "line 1, column 7: name: invalid type: unit value, expected a string"),
        ("number: 1\n", "line 1, column 1: missing field `name`"),
        (
            "name: a\nkinds: [one, three]",
            "line 2, column 14: kinds: unknown variant `three`, expected `one` or `two`",
        ),
    ] {
        assert_eq!(one::<Settings>(text).unwrap_err().to_string(), error, "{text}");
    }
    let unknown = one::<Settings>("name: a\nnumbre: 1\n").unwrap_err().to_string();
    assert!(
        unknown.starts_with("line 2, column 1: unknown field `numbre`, expected one of `name`"),
        "{unknown}"
    );
    assert!(wrong("a: [1, 2").starts_with("line 1, column "), "{}", wrong("a: [1, 2"));
    assert_eq!(wrong("a: 1\n---\nb: 2\n"), "line 3, column 1: a second document");
}

#[test]
fn what_could_be_meant_in_several_ways_is_refused() {
    assert_eq!(wrong("a: 1\nb: 2\na: 3\n"), "line 3, column 1: \"a\" stands here twice");
    assert_eq!(wrong("80: a\n\"80\": b\n"), "line 2, column 1: \"80\" stands here twice");
    assert!(wrong("a: &x {b: 1}\nc:\n  <<: *x\n").contains("merge keys are not read"));
    assert!(wrong("a: !thing b\n").contains("tags are not read"));
    assert!(wrong("? [a, b]\n: c\n").contains("a key must be text"));
}

#[test]
fn no_text_becomes_a_tree_out_of_proportion() {
    let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
    assert!(wrong(&deep).contains("more than 64"), "{}", wrong(&deep));
    assert!(value(&deep[1..deep.len() - 1]).is_array());
    // Each line holds the one before ten times.
    let mut laughs = "a0: &a0 [lol]\n".to_owned();
    for line in 1..10 {
        let of = vec![format!("*a{}", line - 1); 10].join(", ");
        laughs += &format!("a{line}: &a{line} [{of}]\n");
    }
    assert!(wrong(&laughs).contains("stand for too much"), "{}", wrong(&laughs));
    // Each line holds the one before once, within a collection more.
    let mut chain = "a0: &a0 [lol]\n".to_owned();
    for line in 1..100 {
        chain += &format!("a{line}: &a{line} [*a{}]\n", line - 1);
    }
    assert!(wrong(&chain).contains("more than 64"), "{}", wrong(&chain));
    assert!(wrong("a: &a [*a]\n").contains("what it stands in"), "{}", wrong("a: &a [*a]\n"));
}
