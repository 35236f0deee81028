//! What must hold of all policies and requests.

use super::generate::{self, Dice};
use super::naive::{Case, Naive, Paths, Verdict};
use super::setup::{answer, compile, connection, decide, mesh, providers, readings, with_request, workload};
use cinch_policy::{Decision, Partial, Report, WorkloadPolicies};
use serde_json::{Value, json};

const SEED: u64 = 0x00C1_4C11;

fn verdict(decision: &Decision<'_>) -> Verdict {
    let rule = decision.rule.map(|rule| rule as usize);
    (decision.is_allowed(), decision.reason.as_str(), decision.policy.map(ToString::to_string), rule)
}

fn paths(case: &Case) -> Paths {
    let Some(readings) = readings(case) else { return Paths::default() };
    Paths {
        named: readings.named().map(str::to_owned).collect(),
        further: readings.further().map(str::to_owned).collect(),
    }
}

fn report<'p>(policies: &'p WorkloadPolicies, case: &Case) -> Report<'p> {
    match case.http {
        Some(_) => with_request(case, |request| policies.report(request, &answer)),
        None => policies.report_tcp(&connection(case), &answer),
    }
}

/// Calls `each` on this many generated sets, with so many cases for each.
fn each_set(sets: u64, cases: usize, most: usize, mut each: impl FnMut(&mut Dice, &[Value], &[Case])) {
    for set in 0..sets {
        let mut dice = Dice(SEED.wrapping_mul(set + 1));
        let objects = generate::policies(&mut dice, most);
        let cases: Vec<_> = (0..cases).map(|_| generate::case(&mut dice)).collect();
        each(&mut dice, &objects, &cases);
    }
}

#[test]
fn compiled_equals_naive() {
    let (mut allowed, mut denied) = (0_u32, 0_u32);
    let (mesh, workload, providers) = (mesh(), workload(), providers());
    each_set(1000, 120, 6, |_, objects, cases| {
        let policies = compile(objects);
        assert_eq!(policies.faults().collect::<Vec<_>>(), [], "{objects:#?}");
        let naive = Naive { mesh: &mesh, workload: &workload, objects, providers: &providers };
        for case in cases {
            let paths = paths(case);
            let ours = verdict(&decide(&policies, case));
            assert_eq!(ours, naive.decide(case, &paths), "{case:#?} {}", json!(objects));
            *if ours.0 { &mut allowed } else { &mut denied } += 1;
        }
    });
    println!("{allowed} allowed, {denied} denied");
    assert!(allowed + denied >= 100_000 && allowed > 25_000 && denied > 25_000, "{allowed} {denied}");
}

#[test]
fn many_rules_are_found_through_the_index_as_by_a_scan() {
    let (mesh, workload, providers) = (mesh(), workload(), providers());
    each_set(12, 250, 60, |_, objects, cases| {
        let policies = compile(objects);
        let naive = Naive { mesh: &mesh, workload: &workload, objects, providers: &providers };
        for case in cases {
            assert_eq!(verdict(&decide(&policies, case)), naive.decide(case, &paths(case)), "{case:#?}");
        }
    });
}

#[test]
fn reports_say_what_the_naive_evaluator_says() {
    let (mesh, workload, providers) = (mesh(), workload(), providers());
    each_set(300, 40, 6, |_, objects, cases| {
        let policies = compile(objects);
        let naive = Naive { mesh: &mesh, workload: &workload, objects, providers: &providers };
        for case in cases.iter().filter(|case| case.http.is_some()) {
            let (report, paths) = (report(&policies, case), paths(case));
            assert_eq!(verdict(&report.would), naive.would(case, &paths));
            let audit: Vec<_> = report.audit.iter().map(ToString::to_string).collect();
            assert_eq!(audit, naive.audit(case, &paths), "{case:#?} {}", json!(objects));
            let mut dry: Vec<_> = report
                .dry_run
                .iter()
                .map(|one| (one.policy.to_string(), format!("{:?}", one.action).to_uppercase(), one.matched))
                .collect();
            dry.sort();
            assert_eq!(dry, naive.dry_runs(case, &paths), "{case:#?} {}", json!(objects));
        }
    });
}

#[test]
fn order_never_matters() {
    each_set(200, 20, 7, |dice, objects, cases| {
        let mut shuffled = objects.to_vec();
        dice.shuffle(&mut shuffled);
        let (one, other) = (compile(objects), compile(&shuffled));
        let mut rules = shuffled.clone();
        for object in &mut rules {
            dice.shuffle(object["spec"]["rules"].as_array_mut().unwrap());
        }
        let third = compile(&rules);
        for case in cases {
            // Names are unique in most sets only, so of equal names the rule may differ.
            let (one, other, third) = (decide(&one, case), decide(&other, case), decide(&third, case));
            assert_eq!((one.outcome, one.reason, one.policy), (other.outcome, other.reason, other.policy));
            assert_eq!((one.outcome, one.reason, one.policy), (third.outcome, third.reason, third.policy));
        }
    });
}

#[test]
fn adding_a_deny_never_allows_more_and_adding_to_allow_never_less() {
    each_set(300, 20, 5, |dice, objects, cases| {
        let before = compile(objects);
        let mut denied = objects.to_vec();
        denied.push(generate::policy_of(dice, "added", "DENY"));
        let denied = compile(&denied);
        let mut allowed = objects.to_vec();
        allowed.push(generate::policy_of(dice, "added", "ALLOW"));
        let enforced = |object: &Value| {
            object["spec"]["action"] == "ALLOW"
                && object["spec"].get("selector").is_none()
                && object["metadata"].get("annotations").is_none()
                && object["metadata"]["namespace"] != "shop-x"
        };
        let had_allow = objects.iter().any(enforced);
        let mut wider = objects.to_vec();
        for object in wider.iter_mut().filter(|object| object["spec"]["action"] == "ALLOW") {
            object["spec"]["rules"].as_array_mut().unwrap().push(generate::rule(dice, false));
        }
        let (allowed, wider) = (compile(&allowed), compile(&wider));
        for case in cases {
            let passes = decide(&before, case).is_allowed();
            assert!(passes || !decide(&denied, case).is_allowed(), "{case:#?}");
            assert!(!passes || decide(&wider, case).is_allowed(), "{case:#?}");
            assert!(!passes || !had_allow || decide(&allowed, case).is_allowed(), "{case:#?}");
        }
    });
}

#[test]
fn a_dry_run_says_what_enforcement_does_and_changes_nothing() {
    each_set(300, 20, 6, |_, objects, cases| {
        let mut enforced = objects.to_vec();
        for object in &mut enforced {
            object["metadata"].as_object_mut().unwrap().remove("annotations");
        }
        let is_dry = |object: &&Value| {
            object["metadata"].get("annotations").is_some()
                && ["ALLOW", "DENY"].contains(&object["spec"]["action"].as_str().unwrap())
        };
        let without: Vec<_> = objects.iter().filter(|object| !is_dry(object)).cloned().collect();
        let (mixed, enforced, without) = (compile(objects), compile(&enforced), compile(&without));
        for case in cases {
            assert_eq!(verdict(&report(&mixed, case).would), verdict(&decide(&enforced, case)));
            assert_eq!(verdict(&decide(&mixed, case)), verdict(&decide(&without, case)));
        }
    });
}

#[test]
fn partial_evaluation_agrees_with_every_completion() {
    let mut seen = [0_u32; 3];
    each_set(500, 20, 5, |dice, objects, cases| {
        let policies = compile(objects);
        for case in cases {
            let early = policies.connection(&connection(case));
            let completions: Vec<_> = (0..12)
                .map(|_| Case { http: Some(generate::http(dice)), ..case.clone() })
                .chain([Case { http: None, ..case.clone() }])
                .collect();
            let outcomes: Vec<_> = completions.iter().map(|case| decide(&policies, case)).collect();
            match early {
                Partial::Allow(decision) => {
                    seen[0] += 1;
                    assert!(decision.is_allowed() && outcomes.iter().all(Decision::is_allowed), "{case:#?}");
                }
                Partial::Deny(decision) => {
                    seen[1] += 1;
                    assert!(
                        !decision.is_allowed() && !outcomes.iter().any(Decision::is_allowed),
                        "{case:#?}"
                    );
                }
                Partial::NeedsHttp => seen[2] += 1,
            }
        }
    });
    assert!(seen.iter().all(|count| *count > 500), "{seen:?}");
}

#[test]
fn a_connection_is_decided_early_when_no_policy_asks_for_http() {
    each_set(300, 20, 5, |_, objects, cases| {
        let text = json!(objects).to_string();
        if ["osts\"", "ethods\"", "aths\"", "equestPrincipals\"", "request.", "CUSTOM"]
            .iter()
            .any(|word| text.contains(word))
        {
            return;
        }
        let policies = compile(objects);
        for case in cases {
            let early = policies.connection(&connection(case));
            let late = policies.tcp(&connection(case), &answer);
            let expected = if late.is_allowed() { Partial::Allow(late) } else { Partial::Deny(late) };
            assert_eq!(early, expected);
        }
    });
}

/// Every field of every rule: its object, the place of what holds it, its name.
fn fields(objects: &[Value]) -> Vec<(usize, String, String)> {
    let mut fields = Vec::new();
    for (at, object) in objects.iter().enumerate() {
        for (rule, content) in object["spec"]["rules"].as_array().into_iter().flatten().enumerate() {
            for (part, inner) in [("from", "/source"), ("to", "/operation"), ("when", "")] {
                for (member, of) in content[part].as_array().into_iter().flatten().enumerate() {
                    let place = format!("{part}/{member}{inner}");
                    let holder = of.pointer(inner).and_then(Value::as_object);
                    for (name, _) in holder.into_iter().flatten().filter(|(name, _)| *name != "key") {
                        fields.push((at, format!("/spec/rules/{rule}/{place}"), name.clone()));
                    }
                }
            }
        }
    }
    fields
}

/// Turns one field round: what it asked for, it forbids.
fn mutate(dice: &mut Dice, objects: &mut [Value]) -> bool {
    let mut fields = fields(objects);
    if fields.is_empty() {
        return false;
    }
    let (at, pointer, name) = fields.swap_remove(dice.below(fields.len()));
    let of = objects[at].pointer_mut(&pointer).unwrap().as_object_mut().unwrap();
    let turned = match name.strip_prefix("not") {
        Some(rest) => rest[..1].to_lowercase() + &rest[1..],
        None => format!("not{}{}", name[..1].to_uppercase(), &name[1..]),
    };
    let values = of.remove(&name).unwrap();
    of.insert(turned, values).is_none()
}

#[test]
fn one_field_turned_round_is_noticed() {
    let (mesh, workload, providers) = (mesh(), workload(), providers());
    let (mut mutants, mut caught) = (0, 0);
    for seed in 0..200 {
        let mut dice = Dice(SEED ^ seed);
        let action = dice.pick(&["ALLOW", "DENY"]);
        let spec = json!({"action": action, "rules": [generate::rule(&mut dice, false)]});
        let metadata = json!({"name": "p", "namespace": "shop"});
        let api = "security.istio.io/v1";
        let object =
            json!({"apiVersion": api, "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec});
        let mut mutant = vec![object.clone()];
        if !mutate(&mut dice, &mut mutant) {
            continue;
        }
        mutants += 1;
        let policies = compile(&mutant);
        let naive = Naive { mesh: &mesh, workload: &workload, objects: &[object], providers: &providers };
        caught += u32::from((0..400).any(|_| {
            let case = generate::case(&mut dice);
            verdict(&decide(&policies, &case)) != naive.decide(&case, &paths(&case))
        }));
    }
    println!("{caught} of {mutants}");
    assert!(mutants > 100 && caught * 10 >= mutants * 8, "{caught} of {mutants}");
}
