//! Tests of templates, on leaves made by hand.

use super::*;

fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { function, eax, ebx, ecx, edx, ..CpuidEntry::default() }
}

fn template(text: &str) -> CpuTemplate {
    CpuTemplate::from_json(text).unwrap()
}

fn refusal(text: &str) -> String {
    CpuTemplate::from_json(text).unwrap_err().to_string()
}

#[test]
fn every_form_of_a_rule_is_read_and_applied() {
    let template = template(
        r#"{ "cpuid": [{ "leaf": "0x2", "eax": "0x5", "ebx": { "keep": "0xf0" },
                         "ecx": { "set": "0x1" }, "edx": { "keep": "0xf0", "set": "0x3" } }] }"#,
    );
    let made = template.apply(&[leaf(2, [0xff; 4]), leaf(3, [1; 4])]).unwrap();
    assert_eq!(made, [leaf(2, [5, 0xf0, 0xff, 0xf3]), leaf(3, [1; 4])]);
}

#[test]
fn sub_leaves_have_rules_of_their_own() {
    let template = template(r#"{ "cpuid": [{ "leaf": "0x4", "subleaf": "0x1", "eax": "0x9" }] }"#);
    let second = CpuidEntry { index: 1, index_significant: true, ..leaf(4, [1, 0, 0, 0]) };
    let first = CpuidEntry { index: 0, ..second };
    assert_eq!(template.apply(&[first, second]).unwrap(), [first, CpuidEntry { eax: 9, ..second }]);
}

#[test]
fn hidden_leaves_go_but_those_of_the_machine_stay() {
    let template = template(r#"{ "other_leaves": "hide" }"#);
    let supported = [leaf(0, [1; 4]), leaf(0xb, [1; 4]), leaf(0x14, [1; 4]), leaf(0x4000_0000, [1; 4])];
    assert_eq!(template.apply(&supported).unwrap(), [leaf(0xb, [1; 4]), leaf(0x4000_0000, [1; 4])]);
}

#[test]
fn features_that_the_host_lacks_are_refused_by_name() {
    let template = template(r#"{ "cpuid": [{ "leaf": "0x7", "ebx": "0x120" }] }"#);
    let error = template.apply(&[leaf(7, [0, 0x20, 0, 0])]).unwrap_err();
    assert_eq!(error, CpuTemplateError::Unsupported { leaf: 7, subleaf: 0, register: "EBX", bits: 0x100 });
    assert!(error.to_string().contains("bits 0x100 of EBX in CPUID leaf 0x7.0"), "{error}");
    // A leaf that the host lacks altogether.
    assert_eq!(
        template.apply(&[]),
        Err(CpuTemplateError::Unsupported { leaf: 7, subleaf: 0, register: "EBX", bits: 0x120 })
    );
    assert!(template.apply(&[leaf(7, [0, 0x120, 0, 0])]).is_ok());
}

#[test]
fn leaf_without_features_is_made_where_the_host_has_none() {
    let template = template(r#"{ "cpuid": [{ "leaf": "0x80000006", "ecx": "0x1" }] }"#);
    assert_eq!(template.apply(&[]).unwrap(), [leaf(0x8000_0006, [0, 0, 1, 0])]);
}

#[test]
fn dump_of_a_host_is_a_template_for_it() {
    let supported = [
        leaf(0, [0x1f, 1, 2, 3]),
        leaf(1, [0x306a9, 0x800, 0x8020_2001, 0x178b_fbff]),
        CpuidEntry { index: 1, index_significant: true, ..leaf(4, [0x121, 2, 3, 4]) },
        leaf(7, [0, 0x20, 0, 0]),
    ];
    let dump = CpuTemplate::exact(&supported, &[(0x10a, u64::MAX)]);
    let read = template(&serde_json::to_string_pretty(&dump).unwrap());
    assert_eq!(read, dump);
    assert_eq!(read.apply(&supported).unwrap(), supported);
    assert_eq!(read.msr_values(|_| 0), [(0x10a, u64::MAX)]);
}

#[test]
fn registers_are_masked_from_the_value_of_a_new_vcpu() {
    let template = template(r#"{ "msrs": [{ "msr": "0x10a", "value": { "keep": "0x3", "set": "0x8" } }] }"#);
    assert_eq!(template.msr_values(|_| 0x7), [(0x10a, 0xb)]);
}

#[test]
fn what_is_no_template_is_refused_with_the_place() {
    let cases = [
        ("", "EOF"),
        (" []", "it is an array"),
        (r#"{ "cpuids": [] }"#, "unknown field `cpuids`"),
        (r#"{ "cpuid": [{ "eax": "0x1" }] }"#, "missing field `leaf`"),
        (r#"{ "cpuid": [{ "leaf": 1 }] }"#, "line 1 column"),
        (r#"{ "cpuid": [{ "leaf": "1" }] }"#, "`1` is not a hexadecimal number of 32 bits"),
        (r#"{ "cpuid": [{ "leaf": "0x1", "eax": "0x100000000" }] }"#, "0x100000000"),
        (r#"{ "cpuid": [{ "leaf": "0x1", "eax": "0x+1" }] }"#, "0x+1"),
        (r#"{ "cpuid": [{ "leaf": "0x1", "eax": { "mask": "0x1" } }] }"#, "unknown field `mask`"),
        (r#"{ "cpuid": [{ "leaf": "0x1", "eax": true }] }"#, "\"keep\" and \"set\""),
        (r#"{ "cpuid": [{ "leaf": "0x1" }, { "leaf": "0x1" }] }"#, "two rules for CPUID leaf 0x1.0"),
        (
            r#"{ "msrs": [{ "msr": "0x8", "value": "0x0" }, { "msr": "0x8", "value": "0x1" }] }"#,
            "two rules for model-specific register 0x8",
        ),
    ];
    for (text, words) in cases {
        let said = refusal(text);
        assert!(said.contains(words), "{text}: {said}");
    }
    let msr = r#"{ "msr": "0x8", "value": "0x0" }"#;
    let many = format!(r#"{{ "msrs": [{}] }}"#, vec![msr; 65].join(","));
    assert!(refusal(&many).contains("65 rules for model-specific registers"), "{}", refusal(&many));
}

#[test]
fn baseline_hides_what_is_newer_than_its_level_and_requires_the_level() {
    let baseline = CpuTemplate::baseline();
    let all = |function| leaf(function, [u32::MAX; 4]);
    let supported: Vec<_> =
        [0, 1, 6, 7, 0xa, 0xd, 0x14, 0x8000_0001, 0x8000_0007, 0x8000_000a].map(all).into();
    let made = baseline.apply(&supported).unwrap();
    let find = |function: u32| made.iter().find(|entry| entry.function == function).copied();
    let features = find(1).unwrap();
    const AVX_XSAVE_FMA: u32 = 1 << 28 | 1 << 27 | 1 << 26 | 1 << 12;
    assert_eq!(features.ecx & AVX_XSAVE_FMA, 0);
    assert_eq!(features.ecx & 0x0098_2201, 0x0098_2201);
    assert_eq!(find(7).unwrap().ebx, 1 << 7 | 1 << 20);
    assert_eq!(find(0x8000_0001).unwrap().edx & (1 << 26), 0, "1 GiB pages");
    for hidden in [0xa, 0xd, 0x14, 0x8000_000a] {
        assert_eq!(find(hidden), None, "{hidden:#x}");
    }
    // A CPU without POPCNT is below the level.
    let old = [CpuidEntry { ecx: !(1 << 23), ..all(1) }, all(0x8000_0001)];
    assert_eq!(
        baseline.apply(&old),
        Err(CpuTemplateError::Unsupported { leaf: 1, subleaf: 0, register: "ECX", bits: 1 << 23 })
    );
}

#[test]
fn baseline_survives_json() {
    let baseline = CpuTemplate::baseline();
    assert_eq!(template(&serde_json::to_string(&baseline).unwrap()), baseline);
}
