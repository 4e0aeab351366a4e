# What the first process does besides in a realm: its checks are those of a host, and these. The functions are those of init.sh.

# That Linux has asked where it is, and what it was told
rsi=$(dmesg | sed -n 's/^.*\(RME: Using RSI version .*\)/\1/p')
if [ -n "$rsi" ]; then
    check realm.rsi ok "$rsi"
else
    check realm.rsi FAIL "there is no line of RSI in dmesg: this is no realm"
fi

for module in /modules/*; do
    case $module in
        # Buffers as devices with DMA have them, and nothing but one node
        *vivid*) parameters="n_devs=1 node_types=1 allocators=1 cache_hints=1 no_error_inj=1" ;;
        *) parameters= ;;
    esac
    [ -e "$module" ] || continue
    # shellcheck disable=SC2086 # These are words.
    refusal=$(insmod "$module" $parameters 2>&1) || check realm.modules FAIL "${module#/modules/}: $refusal"
done

# Memory that is shared and taken back, again and again: of a device without hardware, which takes addresses of 32 bits. The shared bit is one
# of them if RAM ends below it, and the realm has no more bits than it needs.
last=$(sed -n 's/^[0-9a-f]*-\([0-9a-f]*\) : System RAM$/\1/p' /proc/iomem | tail -n 1)
if [ -e /dev/video0 ] && [ $((0x$last)) -lt $((0x80000000)) ]; then
    if shared=$(share-memory /dev/video0 20 2>&1); then
        check realm.shares_and_takes_back ok "$shared"
    else
        check realm.shares_and_takes_back FAIL "$shared"
    fi
fi

# An attestation token with a challenge that nobody can know beforehand
if [ -d /sys/kernel/config ] && mount -t configfs configfs /sys/kernel/config 2>/dev/null && [ -d /sys/kernel/config/tsm/report ]; then
    report=/sys/kernel/config/tsm/report/cloven
    mkdir $report
    head -c 64 /dev/urandom >/tmp/challenge
    cat /tmp/challenge >$report/inblob
    if refusal=$(cat $report/outblob 2>&1 >/tmp/token) && [ -s /tmp/token ]; then
        check realm.tsm_report ok "$(wc -c </tmp/token) bytes from $(cat $report/provider)"
        echo "@cloven token $(base64 /tmp/token | tr -d '\n') $(od -A n -v -t x1 /tmp/challenge | tr -d ' \n')"
    else
        check realm.tsm_report FAIL "$refusal"
    fi
    rmdir $report
elif [ -d /modules ]; then
    check realm.tsm_report FAIL "there is no tsm/report in configfs"
fi

# Up to 6.18 Linux copies the challenge over eight registers that it names as one, and warns of itself.
if dmesg | grep -q 'field-spanning write .*/rsi_cmds.h'; then
    known='WARNING:.* rsi_attestation_token_init'
fi

# The devices of a virtual machine monitor, whose queues and buffers are memory that is shared
if told cloven.vmm; then
    # What comes of it outside xtask sees.
    { echo cloven: a line by hvc0 >/dev/hvc0; } 2>/dev/null
    seq 150000 | head -c 524288 >/tmp/data
    written() {
        echo 3 >/proc/sys/vm/drop_caches
        head -c 524288 /dev/vda | cmp -s - /tmp/data
    }
    if ! dd if=/tmp/data of=/dev/vda bs=65536 conv=fsync 2>/dev/null; then
        check realm.disk FAIL "it cannot be written"
    elif ! written; then
        check realm.disk FAIL "what was written is not read"
    elif ! rmmod virtio_blk; then
        check realm.disk FAIL "its driver does not go"
    elif ! insmod /modules/*virtio_blk.ko || ! written; then
        check realm.disk FAIL "what was written is not read by another driver"
    else
        check realm.disk ok "512 KiB written and read back, and again after its queues were taken back and shared anew"
    fi
fi

# The defect of "support FEAT_BBM level 2 and large block mapping when rodata=full": a block of the linear map could not be split
leaked=$(dmesg | sed -n 's/^.*Failed to [a-z]*crypt memory, \([0-9]*\) pages.*/\1/p' | tr '\n' ' ')
figure realm.leaks "$(echo "$leaked" | wc -w)" requests
if [ -z "$leaked" ]; then
    check realm.requests_granted ok
else
    check realm.requests_granted FAIL "pages leaked: $leaked"
fi
