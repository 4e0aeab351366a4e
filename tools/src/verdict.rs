//! Judges a run.
//!
//! Invariant: a run passes only if nothing speaks against it; what the guest did not say is never taken as said.

use std::path::Path;

use crate::{
    console::{Check, CheckResult, Transcript},
    qemu::{Ended, Machine},
    rim, token,
};

/// What speaks against a run; nothing means that it passed. `checks` are all checks, this tool's own among them;
/// `needs_checks` is false for a user's own initramfs, which need not print any.
pub fn reasons(transcript: &Transcript, checks: &[Check], ended: &Ended, needs_checks: bool) -> Vec<String> {
    let mut reasons = Vec::new();
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
    let printed = transcript.checks.len();
    match transcript.done {
        Some(count) if count != printed => {
            reasons.push(format!("lines were lost: {count} checks were made, {printed} arrived"));
        }
        Some(0) => reasons.push("nothing was checked".to_owned()),
        Some(_) => {}
        None if needs_checks || printed > 0 => {
            reasons.push("the checks did not come to their end".to_owned())
        }
        None => {}
    }
    reasons
}

/// The checks that only the outside can make of a Linux host: that it sees the machine that QEMU was told to make.
///
/// RAM is compared exactly. The kernel lists all memory of the device tree as `System RAM` but what is reserved `no-map`
/// (arch/arm64/kernel/setup.c, `request_standard_resources`), and rounds only to pages, so that no tolerance is due.
pub fn linux_checks(transcript: &Transcript, machine: &Machine) -> Vec<Check> {
    let cpus = match transcript.figure("linux.cpus") {
        Some(seen) if seen == u64::from(machine.cpus) => Ok(format!("{seen} of {}", machine.cpus)),
        Some(seen) => Err(format!("Linux sees {seen} of {} CPUs", machine.cpus)),
        None => Err("Linux did not say how many CPUs it sees".to_owned()),
    };
    let ram = match (transcript.figure("linux.ram"), transcript.figure("memory.reserved")) {
        (None, _) => Err("Linux did not say how much RAM it sees".to_owned()),
        (_, None) => Err("the hypervisor did not say how much memory it reserved".to_owned()),
        (Some(seen), Some(reserved)) => {
            let sum = format!("{seen} bytes seen + {reserved} reserved of {}", machine.mappable());
            if seen.checked_add(reserved) == Some(machine.mappable()) { Ok(sum) } else { Err(sum) }
        }
    };
    vec![check("linux.cpus", cpus), check("linux.ram", ram)]
}

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
    let mut checks = Vec::new();
    if !transcript.measured.is_empty() {
        let outcome = match (rim::compute(&transcript.measured, image), &transcript.rim) {
            (Err(error), _) => Err(format!("{error:#}")),
            (Ok(_), None) => Err("the realm did not say what its RIM is".to_owned()),
            // A hash of 256 bits has zeroes above, which need not be told.
            (Ok(computed), Some(said)) if format!("{said:0<128}") == computed => {
                Ok(format!("{} steps, {said:.16}…", transcript.measured.len()))
            }
            (Ok(computed), Some(said)) => Err(format!("it is {said}, and should be {computed}")),
        };
        checks.push(check("realm.rim", outcome));
        checks.extend(token_checks(transcript, rim::compute(&transcript.measured, image).ok().as_deref()));
    } else if is_due {
        checks.push(check("realm.ran", Err("the host made no realm".to_owned())));
    }
    checks
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn transcript(lines: &[&str]) -> Transcript {
        let mut transcript = Transcript::default();
        for line in lines {
            transcript.push(line, |_| None);
        }
        transcript
    }

    fn judge(lines: &[&str], ended: &Ended, needs_checks: bool) -> Vec<String> {
        let transcript = transcript(lines);
        reasons(&transcript, &transcript.checks, ended, needs_checks)
    }

    const GOOD: [&str; 2] = ["@cloven check a ok", "@cloven done 1"];

    #[test]
    fn a_run_with_all_its_checks_passes() {
        assert!(judge(&GOOD, &Ended::Off, true).is_empty());
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
            assert_eq!(judge(&GOOD, &ended, true).len(), 1, "{ended:?}");
        }
    }

    #[test]
    fn a_dump_without_an_end_fails_the_run() {
        let [check, done] = GOOD;
        let head = r#"@cloven dump {"stage":"stage 2","moment":"off","input_bits":40}"#;
        let end = r#"@cloven dump {"extents":0}"#;
        assert_eq!(judge(&[check, done, head, end], &Ended::Off, true), Vec::<String>::new());
        assert_eq!(
            judge(&[check, done, head], &Ended::Off, true),
            ["the dump of stage 2 at off did not come to its end"]
        );
    }

    #[test]
    fn a_failed_check_fails_the_run() {
        let reasons = judge(&["@cloven check a FAIL why", "@cloven done 1"], &Ended::Off, true);
        assert_eq!(reasons, ["the check a failed: why"]);
    }

    #[test]
    fn lost_and_damaged_lines_fail_the_run() {
        assert_eq!(judge(&["@cloven check a ok", "@cloven done 2"], &Ended::Off, true).len(), 1);
        assert_eq!(
            judge(&["@cloven check a ok", "@cloven check b", "@cloven done 1"], &Ended::Off, true).len(),
            1
        );
        assert_eq!(
            judge(&["@cloven check a ok"], &Ended::Off, true),
            ["the checks did not come to their end"]
        );
    }

    #[test]
    fn a_run_without_checks_fails_unless_the_initramfs_is_the_users_own() {
        assert_eq!(judge(&["@cloven done 0"], &Ended::Off, true), ["nothing was checked"]);
        assert_eq!(judge(&[], &Ended::Off, true).len(), 1);
        assert!(judge(&["login:"], &Ended::Off, false).is_empty());
        assert_eq!(judge(&["@cloven check a ok"], &Ended::Off, false).len(), 1);
    }

    #[test]
    fn a_realm_must_have_the_rim_of_its_steps() {
        let steps = ["@cloven measured realm 0 40 0 5 3 0 0", "@cloven measured data 0x1000 1 00"];
        let computed = rim::compute(&transcript(&steps).measured, Path::new("/nonexistent")).unwrap();
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
        let computed = rim::compute(&transcript(&steps).measured, Path::new("/nonexistent")).unwrap();
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
        assert_eq!(
            judge(&["cloven[0] fatal: x", check, done], &Ended::Off, true),
            ["the hypervisor failed: x"]
        );
        assert_eq!(judge(&[check, done, "Kernel panic - not syncing"], &Ended::Off, true).len(), 1);
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
}
