#!/bin/sh
# The first process of the stock Linux: checks what a host must see, then gives a shell or powers off.
# Each check prints one line for xtask; the last line says how many there were.

export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
# Only what is as grave as an oops may cut into the lines below.
dmesg -n 1

echo cloven: the first process >/dev/kmsg
checks=0

# check NAME ok|FAIL DETAIL
check() {
    checks=$((checks + 1))
    echo "@cloven check $*"
}

# figure NAME VALUE UNIT
figure() {
    echo "@cloven figure $*"
}

# moment NAME: xtask notes when it sees that
moment() {
    echo "@cloven moment $1"
}

# told WORD: whether the command line has it
told() {
    grep -qwF "$1" /proc/cmdline
}

# view KIND: each line of the input as something that the host sees
view() {
    sed "s/^/@cloven view $1: /"
}

# work CPU: hashes the numbers up to 40000 on that CPU
work() {
    taskset -c "$1" sh -c 'seq 40000 | sha256sum' | cut -d ' ' -f 1
}

# ticks CPU: the timer interrupts that CPU has had
ticks() {
    awk -v cpu="CPU$1" '
        NR == 1 { for (i = 1; i <= NF; i++) if ($i == cpu) column = i + 1 }
        /arch_timer/ { n += $column }
        END { print n + 0 }' /proc/interrupts
}

echo "Linux $(uname -r)"
moment first_process

cpu_dir=/sys/devices/system/cpu
if told maxcpus=1; then
    online=$(cat $cpu_dir/online)
    if [ "$online" = 0 ]; then
        check linux.maxcpus ok "CPU 0 alone until it is asked for more"
    else
        check linux.maxcpus FAIL "online $online"
    fi
    for switch in $cpu_dir/cpu*/online; do
        [ "$(cat "$switch")" = 1 ] || echo 1 2>/dev/null >"$switch"
    done
fi
cpus=$(nproc)
present=$(cat $cpu_dir/present)
online=$(cat $cpu_dir/online)
figure linux.cpus "$cpus" cpus
if [ "$present" = "$online" ]; then
    check linux.online ok "$online"
else
    check linux.online FAIL "present $present, online $online"
fi

# What is reserved as no-map has lines of its own there; lines that are set in are parts of a line above them.
ram=0
for range in $(sed -n 's/^\([0-9a-f]*\)-\([0-9a-f]*\) : System RAM$/\1-\2/p' /proc/iomem); do
    ram=$((ram + 0x${range#*-} - 0x${range%-*} + 1))
done
figure linux.ram "$ram" bytes

# With virtual time that counts instructions, a microsecond is a thousand of them; the kernel's clock begins when it finds its timer.
figure linux.first_process "$(dmesg | sed -n 's/^\[ *\([0-9]*\)\.\([0-9]*\)\] cloven: .*/\1\2/p' | sed 's/^0*//')" us

# Only what is to be compared with the same kernel without a hypervisor
if told cloven.view; then
    grep -w . /proc/cpuinfo | view cpuinfo
    # AT_HWCAP, AT_HWCAP2, AT_HWCAP3 and AT_HWCAP4
    od -A n -v -t x8 /proc/self/auxv | awk '$1 ~ /^0*(10|1a|1d|1e)$/ { print $1, $2 }' | view hwcap
    awk -v cpus="$(nproc)" 'NR > 1 { for (i = 1; i <= cpus + 1; i++) $i = ""; print }' /proc/interrupts | view interrupt
    # RAM is compared by its size.
    sed -n '/: System RAM$/d; /: reserved$/d; /^[0-9a-f]/p' /proc/iomem | view iomem
    dmesg -r | sed -n 's/^<[0-4]>\[[^]]*\] //p' | view warning
    dmesg | sed -n 's/^\[[^]]*\] \(CPU features: .*\)/\1/p' | view feature
    echo "@cloven done $checks"
    poweroff -f
fi

# Where only the boot is to be seen, no work is done.
if told cloven.brief; then
    cpus=0
fi

expected=4dee400da20bb6b7cfd1721c3383c86bb26571402edfe6631109445b28632130
cpu=0
while [ "$cpu" -lt "$cpus" ]; do
    before=$(ticks "$cpu")
    got=$(work "$cpu")
    after=$(ticks "$cpu")
    if [ "$got" = "$expected" ]; then
        check "linux.work.cpu$cpu" ok
    else
        check "linux.work.cpu$cpu" FAIL "digest $got"
    fi
    if [ "$after" -gt "$before" ]; then
        check "linux.ticks.cpu$cpu" ok "$((after - before)) ticks during the work"
    else
        check "linux.ticks.cpu$cpu" FAIL "$before timer interrupts before the work, $after after it"
    fi
    cpu=$((cpu + 1))
done

# CPU_OFF and a second CPU_ON, of each that can
cpu=1
while [ "$cpu" -lt "$cpus" ]; do
    name=linux.cpu_off_on.cpu$cpu
    switch=$cpu_dir/cpu$cpu/online
    if ! echo 0 2>/dev/null >$switch || [ "$(cat $switch)" != 0 ]; then
        check "$name" FAIL "it does not go off"
    elif ! echo 1 2>/dev/null >$switch || [ "$(cat $switch)" != 1 ]; then
        check "$name" FAIL "it does not come back"
    elif [ "$(work "$cpu")" != "$expected" ]; then
        check "$name" FAIL "it works wrong after it came back"
    else
        check "$name" ok
    fi
    cpu=$((cpu + 1))
done

# Suspend to idle, until the clock wakes it
if told cloven.suspend; then
    start=$(date +%s)
    { echo +3 >/sys/class/rtc/rtc0/wakealarm && echo freeze >/sys/power/state; } 2>/dev/null
    success=$(cat /sys/power/suspend_stats/success)
    if [ "$success" = 1 ]; then
        check linux.suspend_to_idle ok "$(($(date +%s) - start)) s"
    else
        check linux.suspend_to_idle FAIL "$success suspends; $(dmesg | tail -n 1)"
    fi
fi

# A realm is given no seed: two realms of the same files are to have the same measurement.
if ! told nokaslr && [ ! -e /realm.sh ]; then
    kaslr=$(dmesg | sed -n 's/^.*\(KASLR .*\)/\1/p')
    if [ "$kaslr" = "KASLR enabled" ]; then
        check linux.kaslr ok
    else
        check linux.kaslr FAIL "$kaslr"
    fi
fi

# Real work while the hypervisor changes the memory below, where a run asks for it
seconds=$(sed -n 's/.*cloven\.work=\([0-9]*\).*/\1/p' /proc/cmdline)
if [ -n "$seconds" ]; then
    seed=$(sed -n 's/.*cloven\.seed=\([0-9]*\).*/\1/p' /proc/cmdline)
    for module in /modules/*; do
        insmod "$module"
    done
    ip link set lo up
    ip addr add 10.0.2.15/24 dev eth0
    ip link set eth0 up
    if host-work "$seconds" "${seed:-1}" >/tmp/work; then
        check linux.work ok "$seconds s, seed ${seed:-1}"
    else
        check linux.work FAIL "it did not come to its end"
    fi
    cat /tmp/work
    checks=$((checks + $(grep -c '^@cloven check' /tmp/work)))
fi

if [ -e /realm.sh ]; then
    . /realm.sh
fi

offence=$(dmesg | grep -E 'WARNING:|Oops|(^|[^A-Za-z0-9])BUG:' | grep -v -E "${known:-^$}" | head -n 1)
if [ -z "$offence" ]; then
    check linux.dmesg_clean ok
else
    check linux.dmesg_clean FAIL "$offence"
fi

echo "@cloven done $checks"
moment shell

if told cloven.shell; then
    echo
    echo "A shell on Linux $(uname -r). 'exit' powers off; Ctrl-A X ends QEMU."
    setsid cttyhack sh
fi
if told cloven.reboot; then
    reboot -f
fi
poweroff -f
