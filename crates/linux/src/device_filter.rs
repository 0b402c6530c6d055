//! Which devices the processes of a version 2 cgroup may open or make: a small BPF program that the kernel asks.
//!
//! Version 1 has a controller for this. Without either, a container that may call mknod (a default capability)
//! could open the machine's disks. [`program`] is pure: rules in, instructions out; [`attach`] loads them.

use std::ffi::c_long;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::io::Errno;

use crate::{Error, Result};

/// One rule; the last one that matches counts. What is `None` matches everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub allow: bool,
    pub kind: Option<Kind>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: Access,
}

/// Numbers as the kernel gives them to the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Block = 1,
    Character = 2,
}

/// What may be done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access(u32);

impl Access {
    const MAKE: u32 = 1;
    const READ: u32 = 2;
    const WRITE: u32 = 4;

    /// Reads `rwm` in any order and number.
    pub fn parse(text: &str) -> Option<Self> {
        let bit = |letter| match letter {
            'm' => Some(Self::MAKE),
            'r' => Some(Self::READ),
            'w' => Some(Self::WRITE),
            _ => None,
        };
        text.chars().try_fold(0, |bits, letter| Some(bits | bit(letter)?)).map(Access)
    }

    fn is_all(self) -> bool {
        self.0 == Self::MAKE | Self::READ | Self::WRITE
    }
}

/// One instruction in the kernel's layout.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// The destination in the low half, the source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const AND_NUMBER: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_OTHER_NUMBER: u8 = 0x55;
const JUMP_IF_NUMBER: u8 = 0x15;
const JUMP_IF_OTHER: u8 = 0x5d;
const EXIT: u8 = 0x95;

const RESULT: u8 = 0;
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn instruction(code: u8, to: u8, from: u8, offset: usize, immediate: u32) -> Instruction {
    Instruction {
        code,
        registers: from << 4 | to,
        // Jumps stay within one rule, loads within the context.
        offset: i16::try_from(offset).expect("offsets are a few instructions"),
        immediate: immediate.cast_signed(),
    }
}

/// The program for these rules; what none of them matches is refused.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    // The context: kind and access share the first word, then come major and minor.
    let mut all = vec![
        instruction(LOAD_WORD, KIND, SCRATCH, 0, 0),
        instruction(MOVE, ACCESS, KIND, 0, 0),
        instruction(AND_NUMBER, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, SCRATCH, 4, 0),
        instruction(LOAD_WORD, MINOR, SCRATCH, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let conditions = conditions(rule);
        if conditions.is_empty() {
            // It decides all that is left, and the kernel takes no instruction that is never reached.
            all.extend(answer(rule.allow));
            return all;
        }
        let total: usize = conditions.iter().map(Vec::len).sum::<usize>() + 2;
        let mut done = 0;
        for mut condition in conditions {
            done += condition.len();
            if let Some(jump) = condition.last_mut() {
                jump.offset = i16::try_from(total - done).expect("a rule is a few instructions");
            }
            all.extend(condition);
        }
        all.extend(answer(rule.allow));
    }
    all.extend(answer(false));
    all
}

fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(MOVE_NUMBER, RESULT, 0, 0, u32::from(allow)), instruction(EXIT, 0, 0, 0, 0)]
}

/// Each ends with a jump that is taken when the rule does not match; where to is filled in later.
fn conditions(rule: &Rule) -> Vec<Vec<Instruction>> {
    let other = |register, number| vec![instruction(JUMP_IF_OTHER_NUMBER, register, 0, 0, number)];
    let mut all = Vec::new();
    all.extend(rule.kind.map(|kind| other(KIND, kind as u32)));
    if !rule.access.is_all() {
        // All that is asked must be allowed; any of it may be forbidden.
        let last = match rule.allow {
            true => instruction(JUMP_IF_OTHER, SCRATCH, ACCESS, 0, 0),
            false => instruction(JUMP_IF_NUMBER, SCRATCH, 0, 0, 0),
        };
        all.push(vec![
            instruction(MOVE, SCRATCH, ACCESS, 0, 0),
            instruction(AND_NUMBER, SCRATCH, 0, 0, rule.access.0),
            last,
        ]);
    }
    all.extend(rule.major.map(|major| other(MAJOR, major)));
    all.extend(rule.minor.map(|minor| other(MINOR, minor)));
    all
}

/// The arguments of `BPF_PROG_LOAD`, as far as they are used.
#[repr(C)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The arguments of `BPF_PROG_ATTACH`, as far as they are used.
#[repr(C)]
struct Attach {
    target: RawFd,
    program: RawFd,
    kind: u32,
    flags: u32,
}

const PROG_LOAD: c_long = 5;
const PROG_ATTACH: c_long = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

fn bpf<T>(command: c_long, arguments: &T) -> Result<c_long> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes, which are those of `arguments`; pointers in them are to
    // buffers that outlive the call in both callers.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(arguments), size_of::<T>()) };
    match done {
        -1 => Err(Error::call(
            "bpf",
            Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO),
        )),
        done => Ok(done),
    }
}

/// Makes the processes of the cgroup whose version 2 directory is `dir` keep to the rules, for as long as it is.
pub fn attach(dir: &Path, rules: &[Rule]) -> Result<()> {
    let instructions = program(rules);
    let load = Load {
        kind: TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(instructions.len())
            .map_err(|_| Error::call("bpf", Errno::TOOBIG))?,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    let loaded = RawFd::try_from(bpf(PROG_LOAD, &load)?).map_err(|_| Error::call("bpf", Errno::BADF))?;
    // SAFETY: the kernel has just made this descriptor for us.
    let program = unsafe { OwnedFd::from_raw_fd(loaded) };
    let target = File::open(dir).map_err(|e| Error::io(dir, e))?;
    let attach = Attach {
        target: target.as_raw_fd(),
        program: program.as_raw_fd(),
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    bpf(PROG_ATTACH, &attach).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: Option<Kind>, major: Option<u32>, access: &str) -> Rule {
        Rule { allow, kind, major, minor: None, access: Access::parse(access).unwrap() }
    }

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], kind: Kind, access: &str, major: u32, minor: u32) -> bool {
        let context = [Access::parse(access).unwrap().0 << 16 | kind as u32, major, minor];
        let (mut registers, mut at) = ([0u32; 6], 0);
        loop {
            let i = program[at];
            let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            let number = i.immediate.cast_unsigned();
            let mut jump = false;
            match i.code {
                LOAD_WORD => registers[to] = context[usize::try_from(i.offset).unwrap() / 4],
                MOVE => registers[to] = registers[from],
                MOVE_NUMBER => registers[to] = number,
                AND_NUMBER => registers[to] &= number,
                SHIFT_RIGHT => registers[to] >>= number,
                JUMP_IF_OTHER_NUMBER => jump = registers[to] != number,
                JUMP_IF_NUMBER => jump = registers[to] == number,
                JUMP_IF_OTHER => jump = registers[to] != registers[from],
                EXIT => return registers[0] == 1,
                code => panic!("{code}"),
            }
            at += 1 + if jump { usize::try_from(i.offset).unwrap() } else { 0 };
        }
    }

    #[test]
    fn the_last_rule_that_matches_counts() {
        use Kind::{Block, Character};
        let rules = [
            rule(false, None, None, "rwm"),
            rule(true, Some(Character), None, "m"),
            rule(true, Some(Character), Some(1), "rw"),
            Rule { minor: Some(9), ..rule(false, Some(Character), Some(1), "w") },
        ];
        let program = program(&rules);
        for (kind, access, major, minor, allowed) in [
            (Character, "r", 1, 3, true),
            (Character, "rw", 1, 3, true),
            (Character, "rwm", 1, 3, false),
            (Character, "m", 7, 7, true),
            (Character, "r", 7, 7, false),
            (Character, "r", 1, 9, true),
            (Character, "rw", 1, 9, false),
            (Block, "m", 8, 0, false),
            (Block, "r", 8, 0, false),
        ] {
            assert_eq!(
                run(&program, kind, access, major, minor),
                allowed,
                "{kind:?} {access} {major}:{minor}"
            );
        }
        assert!(!run(&super::program(&[]), Character, "r", 1, 3), "nothing is allowed by nobody");
        assert!(run(&super::program(&[rule(true, None, None, "rwm")]), Block, "rwm", 8, 0));
    }

    #[test]
    fn the_kernel_takes_the_program_and_keeps_to_it() {
        let hybrid = Path::new("/sys/fs/cgroup/unified");
        let mount = if hybrid.is_dir() { hybrid } else { Path::new("/sys/fs/cgroup") };
        assert!(mount.join("cgroup.procs").exists(), "no version 2 hierarchy is mounted");
        let dir = mount.join(format!("trierarch-devices-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let filter = attach(
            &dir,
            &[
                rule(false, None, None, "rwm"),
                Rule { minor: Some(3), ..rule(true, Some(Kind::Character), Some(1), "rwm") },
            ],
        );
        let script = "echo $$ > $0/cgroup.procs && : < /dev/null && ! ( : < /dev/zero )";
        let status = std::process::Command::new("sh").args(["-c", script]).arg(&dir).status();
        std::fs::remove_dir(&dir).unwrap();
        filter.unwrap();
        assert!(status.unwrap().success(), "/dev/null is allowed and /dev/zero is not");
    }
}
