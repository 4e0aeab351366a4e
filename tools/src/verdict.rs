//! Judges a run.
//!
//! Invariant: a run passes only if nothing speaks against it; what the guest did not say is never taken as said.

use std::path::Path;

use crate::{
    console::{Check, CheckResult, Transcript},
    qemu::{Ended, Machine},
    rim::{self, Files},
    run::{Host, Way},
    token,
};

/// What speaks against a run; nothing means that it passed. `checks` are all checks, this tool's own among them;
/// `ends` says how many guests must say that their checks came to their end: none with a user's own initramfs, which need not make any.
pub fn reasons(transcript: &Transcript, checks: &[Check], ended: &Ended, ends: usize) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(text) = &transcript.no_realm_kernel {
        reasons.push(format!("the kernel cannot run in a realm: {text}"));
    }
    if let Some(text) = &transcript.fatal {
        reasons.push(format!("the hypervisor failed: {text}"));
    }
    if let Some(text) = &transcript.kernel_fault {
        reasons.push(format!("Linux broke: {text}"));
    }
    match ended {
        Ended::Off => {}
        Ended::Failed(status) => reasons.push(format!("QEMU failed: {status}")),
        Ended::TimedOut(timeout) => reasons.push(format!("it was not over after {} s", timeout.as_secs())),
        Ended::Seen => reasons.push("it was ended from outside".to_owned()),
        Ended::Broken => reasons.push("it did not switch off after it broke".to_owned()),
    }
    let failed = checks.iter().filter(|check| check.result == CheckResult::Fail);
    reasons.extend(failed.map(|check| format!("the check {} failed: {}", check.name, check.detail)));
    if let Some(text) = &transcript.malformed {
        reasons.push(format!("a line was damaged: {text}"));
    }
    if let Some(dump) = transcript.dumps.unfinished() {
        reasons.push(format!("the dump of {} at {} did not come to its end", dump.stage, dump.moment));
    }
    let printed = transcript.checks.len() - transcript.own_checks;
    match transcript.done {
        Some(count) if count != printed => {
            reasons.push(format!("lines were lost: {count} checks were made, {printed} arrived"));
        }
        Some(0) => reasons.push("nothing was checked".to_owned()),
        _ if transcript.ends < ends || (transcript.done.is_none() && printed > 0) => {
            reasons.push("the checks did not come to their end".to_owned())
        }
        _ => {}
    }
    reasons
}

/// The checks that only the outside can make of a Linux host: that it sees the machine that QEMU was told to make.
///
/// RAM is compared exactly. The kernel lists all memory of the device tree as `System RAM` but what is reserved `no-map`
/// (arch/arm64/kernel/setup.c, `request_standard_resources`), and rounds only to pages, so that no tolerance is due.
pub fn linux_checks(transcript: &Transcript, machine: &Machine) -> Vec<Check> {
    vec![cpus(transcript, machine.cpus), ram(transcript, &["memory.reserved"], machine.mappable())]
}

/// That Linux sees so many CPUs.
fn cpus(transcript: &Transcript, due: u32) -> Check {
    let outcome = match transcript.figure("linux.cpus") {
        Some(seen) if seen == u64::from(due) => Ok(format!("{seen} of {due}")),
        Some(seen) => Err(format!("Linux sees {seen} of {due} CPUs")),
        None => Err("Linux did not say how many CPUs it sees".to_owned()),
    };
    check("linux.cpus", outcome)
}

/// That Linux sees so many bytes of RAM, less what these figures of the hypervisor say.
fn ram(transcript: &Transcript, figures: &[&str], due: u64) -> Check {
    let reserved = figures.iter().try_fold(0u64, |sum, name| {
        let value = transcript.figure(name).ok_or(format!("the hypervisor did not say {name}"))?;
        Ok(sum.saturating_add(value))
    });
    let outcome = match (transcript.figure("linux.ram"), reserved) {
        (None, _) => Err("Linux did not say how much RAM it sees".to_owned()),
        (_, Err(missing)) => Err(missing),
        (Some(seen), Ok(reserved)) => {
            let sum = format!("{seen} bytes seen + {reserved} reserved of {due}");
            if seen.checked_add(reserved) == Some(due) { Ok(sum) } else { Err(sum) }
        }
    };
    check("linux.ram", outcome)
}

/// The checks that only the outside can make of a Linux in a realm: that it sees what it was given, that its RIM is that of the steps in which it
/// was made of these files, that its token is right, that the hypervisor has looked whose its pages are.
pub fn linux_realm_checks(transcript: &Transcript, machine: &Machine, host: &Host) -> Vec<Check> {
    let mut checks = Vec::new();
    if host.checks {
        checks.extend(match host.realm {
            Some(Way::Vmm { memory, recs }) => [cpus(transcript, recs), ram(transcript, &[], memory.0)],
            _ => {
                let reserved = ["memory.reserved", "policy.reserved"];
                [cpus(transcript, machine.cpus), ram(transcript, &reserved, machine.mappable())]
            }
        });
    }
    let files = Files { image: &host.kernel, initrd: Some(&host.initrd) };
    checks.push(match transcript.measured.as_slice() {
        [] => check("realm.rim", Err("nobody said how the realm was made".to_owned())),
        _ => rim_check(transcript, files),
    });
    if host.token {
        checks.extend(token_checks(transcript, rim::compute(&transcript.measured, files).ok().as_deref()));
    }
    match host.realm {
        Some(Way::Policy) if !transcript.checks.iter().any(|check| check.name == AUDIT) => {
            checks.push(check(AUDIT, Err("the hypervisor did not look".to_owned())));
        }
        Some(Way::Vmm { .. }) if host.checks => {
            let seen = transcript.virtio_console.clone();
            checks.push(check("realm.console", seen.ok_or("nothing came by hvc0".to_owned())));
        }
        _ => {}
    }
    checks
}

/// The hypervisor's own check where a policy gives a realm the machine: whose its pages are, in the host's stage 2 and in EL2's map.
const AUDIT: &str = "policy.protected_pages_are_nobody_elses";

/// A check of this tool's own.
fn check(name: &str, outcome: Result<String, String>) -> Check {
    let (result, detail) = match outcome {
        Ok(detail) => (CheckResult::Ok, detail),
        Err(detail) => (CheckResult::Fail, detail),
    };
    Check { name: name.to_owned(), result, detail }
}

/// Of each attestation token that a realm has printed: that it is right, is of the realm with this RIM, and answers its challenge. One is due.
pub fn token_checks(transcript: &Transcript, rim: Option<&str>) -> Vec<Check> {
    let one = |(text, challenge): &(String, String)| {
        let bytes = |text: &str| token::from_text(text).ok_or("it is neither base64 nor hexadecimal digits");
        let (token, challenge) = (bytes(text)?, bytes(challenge)?);
        let expected = token::Expected { rim, challenge: Some(&challenge), key: None };
        let claims = token::verify(&token, expected).map_err(|error| error.to_string())?;
        Ok(format!("{} bytes, RIM {:.16}…", claims.size, claims.rim()))
    };
    if transcript.tokens.is_empty() {
        return vec![check("realm.token", Err("the realm printed no attestation token".to_owned()))];
    }
    transcript.tokens.iter().map(|token| check("realm.token", one(token))).collect()
}

/// The checks that only the outside can make of a realm with the payload `image`: that its RIM is that of the steps in which it was made. With
/// `is_due` there must have been one.
pub fn realm_checks(transcript: &Transcript, image: &Path, is_due: bool) -> Vec<Check> {
    if !transcript.measured.is_empty() {
        let files = Files { image, initrd: None };
        let mut checks = vec![rim_check(transcript, files)];
        checks.extend(token_checks(transcript, rim::compute(&transcript.measured, files).ok().as_deref()));
        checks
    } else if is_due {
        vec![check("realm.ran", Err("the host made no realm".to_owned()))]
    } else {
        Vec::new()
    }
}

/// The RIM as the realm has read it, or as its token says.
fn told_rim(transcript: &Transcript) -> Option<String> {
    let attested = || {
        let (token, _) = transcript.tokens.last()?;
        let anything = token::Expected { rim: None, challenge: None, key: None };
        Some(token::verify(&token::from_text(token)?, anything).ok()?.rim())
    };
    transcript.rim.clone().or_else(attested)
}

/// That the RIM is that of the steps in which the realm was made of `files`.
fn rim_check(transcript: &Transcript, files: Files) -> Check {
    let outcome = match (rim::compute(&transcript.measured, files), &told_rim(transcript)) {
        (Err(error), _) => Err(format!("{error:#}")),
        (Ok(_), None) => Err("the realm did not say what its RIM is".to_owned()),
        // A hash of 256 bits has zeroes above, which need not be told.
        (Ok(computed), Some(said)) if format!("{said:0<128}") == computed => {
            Ok(format!("{} steps, {said:.16}…", transcript.measured.len()))
        }
        (Ok(computed), Some(said)) => Err(format!("it is {said}, and should be {computed}")),
    };
    check("realm.rim", outcome)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::qemu::Size;

    fn transcript(lines: &[&str]) -> Transcript {
        let mut transcript = Transcript::default();
        for line in lines {
            transcript.push(line, |_| None);
        }
        transcript
    }

    fn judge(lines: &[&str], ended: &Ended, ends: usize) -> Vec<String> {
        let transcript = transcript(lines);
        reasons(&transcript, &transcript.checks, ended, ends)
    }

    const GOOD: [&str; 2] = ["@cloven check a ok", "@cloven done 1"];

    #[test]
    fn a_run_with_all_its_checks_passes() {
        assert!(judge(&GOOD, &Ended::Off, 1).is_empty());
    }

    #[test]
    fn a_run_that_did_not_switch_off_by_itself_fails() {
        let ends = [
            Ended::TimedOut(Duration::from_secs(5)),
            Ended::Failed("exit status: 1".into()),
            Ended::Seen,
            Ended::Broken,
        ];
        for ended in ends {
            assert_eq!(judge(&GOOD, &ended, 1).len(), 1, "{ended:?}");
        }
    }

    #[test]
    fn a_dump_without_an_end_fails_the_run() {
        let [check, done] = GOOD;
        let head = r#"@cloven dump {"stage":"stage 2","moment":"off","input_bits":40}"#;
        let end = r#"@cloven dump {"extents":0}"#;
        assert_eq!(judge(&[check, done, head, end], &Ended::Off, 1), Vec::<String>::new());
        assert_eq!(
            judge(&[check, done, head], &Ended::Off, 1),
            ["the dump of stage 2 at off did not come to its end"]
        );
    }

    #[test]
    fn a_failed_check_fails_the_run() {
        let reasons = judge(&["@cloven check a FAIL why", "@cloven done 1"], &Ended::Off, 1);
        assert_eq!(reasons, ["the check a failed: why"]);
    }

    #[test]
    fn lost_and_damaged_lines_fail_the_run() {
        assert_eq!(judge(&["@cloven check a ok", "@cloven done 2"], &Ended::Off, 1).len(), 1);
        assert_eq!(
            judge(&["@cloven check a ok", "@cloven check b", "@cloven done 1"], &Ended::Off, 1).len(),
            1
        );
        assert_eq!(judge(&["@cloven check a ok"], &Ended::Off, 1), ["the checks did not come to their end"]);
    }

    #[test]
    fn a_run_without_checks_fails_unless_the_initramfs_is_the_users_own() {
        assert_eq!(judge(&["@cloven done 0"], &Ended::Off, 1), ["nothing was checked"]);
        assert_eq!(judge(&[], &Ended::Off, 1).len(), 1);
        assert!(judge(&["login:"], &Ended::Off, 0).is_empty());
        assert_eq!(judge(&["@cloven check a ok"], &Ended::Off, 0).len(), 1);
    }

    fn nothing() -> Files<'static> {
        Files { image: Path::new("/nonexistent"), initrd: None }
    }

    #[test]
    fn a_realm_must_have_the_rim_of_its_steps() {
        let steps = ["@cloven measured realm 0 40 0 5 3 0 0", "@cloven measured data 0x1000 1 00"];
        let computed = rim::compute(&transcript(&steps).measured, nothing()).unwrap();
        let judge = |said: &str| {
            let line = format!("@cloven rim {said}");
            let mut lines = steps.to_vec();
            lines.extend((!said.is_empty()).then_some(line.as_str()));
            realm_checks(&transcript(&lines), Path::new("/nonexistent"), true).remove(0)
        };
        assert_eq!(judge(&computed).result, CheckResult::Ok);
        assert_eq!(judge(&computed[..64]).result, CheckResult::Ok);
        assert!(judge("").detail.contains("did not say"));
        assert!(judge(&"0".repeat(64)).detail.contains(&computed));
    }

    #[test]
    fn a_realm_must_print_a_token_of_its_rim_that_answers_its_challenge() {
        let steps = ["@cloven measured realm 0 40 0 5 3 0 0", "@cloven measured data 0x1000 1 00"];
        let computed = rim::compute(&transcript(&steps).measured, nothing()).unwrap();
        let rim = token::from_text(&computed[..64]).unwrap();
        let judge = |tokens: &[String]| {
            let said = format!("@cloven rim {computed}");
            let mut lines = [&steps[..], &[&said]].concat();
            lines.extend(tokens.iter().map(String::as_str));
            let mut checks = realm_checks(&transcript(&lines), Path::new("/nonexistent"), true);
            assert_eq!((checks.remove(0).name, checks[0].name.as_str()), ("realm.rim".into(), "realm.token"));
            checks
        };
        let line = |rim: &[u8], answered: u8, asked: u8| {
            let made = token::tests::Recipe::new(rim.to_vec(), vec![answered; 64]).make();
            format!("@cloven token {} {}", token::hex(&made), token::hex(&[asked; 64]))
        };
        assert_eq!(judge(&[line(&rim, 3, 3)])[0].result, CheckResult::Ok);
        assert!(judge(&[])[0].detail.contains("no attestation token"));
        assert!(judge(&[line(&[0; 32], 3, 3)])[0].detail.contains("RIM"));
        assert!(judge(&[line(&rim, 3, 4)])[0].detail.contains("challenge"));
        assert!(judge(&["@cloven token 00 00".to_owned()])[0].detail.contains("no CCA token"));
        assert!(judge(&["@cloven token ?? 00".to_owned()])[0].detail.contains("neither base64"));
        // One wrong token of several is wrong.
        let results: Vec<_> =
            judge(&[line(&rim, 3, 3), line(&rim, 5, 6)]).iter().map(|check| check.result).collect();
        assert_eq!(results, [CheckResult::Ok, CheckResult::Fail]);
    }

    #[test]
    fn a_realm_that_was_not_made_is_missed_where_one_is_due() {
        let nothing = |is_due| realm_checks(&transcript(&[]), Path::new("/nonexistent"), is_due);
        assert_eq!(nothing(true)[0].result, CheckResult::Fail);
        assert!(nothing(false).is_empty());
    }

    #[test]
    fn a_fault_of_the_hypervisor_or_of_linux_fails_the_run() {
        let [check, done] = GOOD;
        assert_eq!(judge(&["cloven[0] fatal: x", check, done], &Ended::Off, 1), ["the hypervisor failed: x"]);
        assert_eq!(judge(&[check, done, "Kernel panic - not syncing"], &Ended::Off, 1).len(), 1);
    }

    fn linux(figures: &[&str]) -> Vec<CheckResult> {
        linux_checks(&transcript(figures), &Machine::default()).iter().map(|check| check.result).collect()
    }

    #[test]
    fn a_linux_that_sees_the_whole_machine_less_the_reservation_is_right() {
        let reserved = "@cloven figure memory.reserved 8388608 bytes";
        let cpus = "@cloven figure linux.cpus 4 cpus";
        let ram = format!("@cloven figure linux.ram {} bytes", (1 << 30) - 8388608);
        assert_eq!(linux(&[reserved, cpus, &ram]), [CheckResult::Ok; 2]);
    }

    #[test]
    fn a_linux_that_misses_a_cpu_or_a_page_is_wrong() {
        let reserved = "@cloven figure memory.reserved 8388608 bytes";
        let ram = format!("@cloven figure linux.ram {} bytes", (1 << 30) - 8388608 - 4096);
        assert_eq!(linux(&[reserved, "@cloven figure linux.cpus 3 cpus", &ram]), [CheckResult::Fail; 2]);
        assert_eq!(linux(&[]), [CheckResult::Fail; 2]);
        assert_eq!(linux(&[&ram]), [CheckResult::Fail; 2]);
    }

    /// The kernel and the initramfs of a realm, in a directory that goes with it.
    fn realm(way: Way) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let [kernel, initrd] = ["kernel", "initrd"].map(|name| dir.path().join(name));
        fs::write(&kernel, [1; 3]).unwrap();
        fs::write(&initrd, [2; 5]).unwrap();
        (dir, Host { realm: Some(way), token: false, kernel, initrd, checks: true, work: None })
    }

    const STEPS: [&str; 3] = [
        "@cloven measured realm 0 40 0 5 3 0 0",
        "@cloven measured image 0x80000000 3 1",
        "cloven[0] info: @cloven measured initrd 0x88000000 5 1",
    ];

    /// The names of the checks that failed.
    fn failed(lines: &[&str], host: &Host) -> Vec<String> {
        let transcript = transcript(lines);
        assert_eq!(transcript.malformed, None);
        let checks = linux_realm_checks(&transcript, &Machine::default(), host);
        let failed = checks.into_iter().filter(|check| check.result == CheckResult::Fail);
        failed.map(|check| check.name).collect()
    }

    fn rim_line(host: &Host) -> String {
        let files = Files { image: &host.kernel, initrd: Some(&host.initrd) };
        format!("@cloven rim {}", rim::compute(&transcript(&STEPS).measured, files).unwrap())
    }

    #[test]
    fn a_realm_that_has_the_machine_sees_all_but_what_is_reserved_and_was_looked_at() {
        let (_dir, host) = realm(Way::Policy);
        let rim = rim_line(&host);
        let ram = format!("@cloven figure linux.ram {} bytes", (1 << 30) - 4096 - 8192);
        let whole = [
            STEPS[0],
            STEPS[1],
            STEPS[2],
            &rim,
            &ram,
            "@cloven figure linux.cpus 4 cpus",
            "cloven[0] info: @cloven figure memory.reserved 4096 bytes",
            "cloven[0] info: @cloven figure policy.reserved 8192 bytes",
            "cloven[0] info: @cloven check policy.protected_pages_are_nobody_elses ok 5 protected, 1 shared",
        ];
        assert_eq!(failed(&whole, &host), Vec::<String>::new());
        let names = ["realm.rim", "realm.rim", "realm.rim", "realm.rim", "linux.ram", "linux.cpus"];
        let names = names.into_iter().chain(["linux.ram", "linux.ram", AUDIT]);
        for (missing, name) in names.enumerate() {
            // Without its first step nothing was measured at all.
            let rest: Vec<&str> = (0..whole.len()).filter(|at| *at != missing).map(|at| whole[at]).collect();
            assert_eq!(failed(&rest, &host), [name], "without {}", whole[missing]);
        }
        fs::write(&host.kernel, [1, 1, 9]).unwrap();
        assert_eq!(failed(&whole, &host), ["realm.rim"]);
        let own = Host { checks: false, ..host };
        assert_eq!(failed(&["login:"], &own), ["realm.rim", AUDIT]);
    }

    #[test]
    fn a_realm_of_a_monitor_sees_its_own_memory_and_is_heard_by_its_virtio_console() {
        let (_dir, host) = realm(Way::Vmm { memory: Size(512 << 20), recs: 2 });
        let rim = rim_line(&host);
        let figures = ["@cloven figure linux.ram 536870912 bytes", "@cloven figure linux.cpus 2 cpus"];
        let whole = [&STEPS[..], &[&rim], &figures, &["hvc0: cloven: a line"]].concat();
        assert_eq!(failed(&whole, &host), Vec::<String>::new());
        assert_eq!(failed(&whole[..6], &host), ["realm.console"]);
        assert_eq!(failed(&whole[..4], &host), ["linux.cpus", "linux.ram", "realm.console"]);
    }

    #[test]
    fn a_kernel_without_code_for_realms_is_why_a_run_failed() {
        let text = "policy: the guest accessed IPA 0x9000000 as if it were no realm, and has never asked RSI_VERSION";
        let reasons = judge(&[&format!("cloven[0] error: {text}")], &Ended::Off, 1);
        assert_eq!(reasons[0], format!("the kernel cannot run in a realm: {text}"));
    }

    #[test]
    fn checks_of_the_hypervisor_are_no_guests() {
        let [check, done] = GOOD;
        let own = "cloven[0] info: @cloven check policy.x ok";
        assert!(judge(&[check, done, own], &Ended::Off, 1).is_empty());
        assert_eq!(judge(&[own], &Ended::Off, 1), ["the checks did not come to their end"]);
        let failed = judge(&[check, done, "cloven[0] info: @cloven check policy.x FAIL why"], &Ended::Off, 1);
        assert_eq!(failed, ["the check policy.x failed: why"]);
    }
}
