// Package uboottest lets a real U-Boot decide in tests: it boots Debian's
// qemu_arm64 build in QEMU with a control device tree of ours, gives it a FIT in
// memory, types one command and returns what the bootloader said.
//
// A run takes about a second, has a hard deadline and ends with its own
// process only. Tests are skipped with "peer absent" where QEMU or U-Boot are
// not installed. Only tests import this package.
package uboottest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firmseal/firmseal/internal/peertest"
)

// LoadAddress is where the FIT lies in the machine's memory.
const LoadAddress = "0x50000000"

// deadline of one run; a loaded machine needs seconds, a hang is cut here.
const deadline = 60 * time.Second

// Board is QEMU's virt machine with U-Boot.
type Board struct {
	qemu, bios string
	// Tree is the machine's own device tree, without keys.
	Tree []byte
}

// Find looks for QEMU and U-Boot, or skips the test.
func Find(t testing.TB) *Board {
	t.Helper()
	b := &Board{
		qemu: peertest.Tool(t, "qemu-system-aarch64"),
		bios: peertest.File(t, "/usr/lib/u-boot/qemu_arm64/u-boot.bin"),
	}
	dir, err := os.MkdirTemp("", "uboottest")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	dtb := filepath.Join(dir, "virt.dtb")
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	out, err := exec.CommandContext(ctx, b.qemu, "-M", "virt,dumpdtb="+dtb, "-cpu", "cortex-a53", "-m", "512", "-display", "none", "-nic", "none").CombinedOutput()
	if err != nil {
		t.Fatalf("dumping the machine's device tree: %v\n%s", err, out)
	}
	if b.Tree, err = os.ReadFile(dtb); err != nil {
		t.Fatal(err)
	}
	return b
}

// Run boots with the control tree, puts fit at LoadAddress, types command, and
// returns what U-Boot, and whatever it started, said after it.
func (b *Board) Run(t testing.TB, control, fit []byte, command string) string {
	t.Helper()
	// Not t.TempDir: a test's name may have commas, which QEMU takes for options.
	dir, err := os.MkdirTemp("", "uboottest")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for name, data := range map[string][]byte{"control.dtb": control, "image.fit": fit} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.qemu, "-M", "virt", "-cpu", "cortex-a53", "-m", "512",
		"-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none",
		"-bios", b.bios, "-dtb", filepath.Join(dir, "control.dtb"),
		"-device", "loader,file="+filepath.Join(dir, "image.fit")+",addr="+LoadAddress+",force-raw=on")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill() // it is done, one way or another
		cmd.Wait()
	}()

	const (
		booting = iota
		prompting
		answering
	)
	var said strings.Builder
	state, from := booting, 0
	buf := make([]byte, 4096)
	for {
		n, err := out.Read(buf)
		said.Write(buf[:n])
		heard := said.String()[from:]
		switch state {
		case booting:
			if strings.Contains(heard, "Hit any key to stop autoboot") {
				in.Write([]byte("\n"))
				state, from = prompting, said.Len()
			}
		case prompting:
			if strings.Contains(heard, "=> ") {
				in.Write([]byte(command + "\n"))
				state, from = answering, said.Len()
			}
		case answering:
			// The next prompt, or a reset after a failed boot, ends the answer.
			if strings.Contains(heard, "\n=> ") || strings.Contains(heard, "U-Boot 20") || strings.Contains(heard, "resetting ...") {
				return tidy(heard)
			}
		}
		if err != nil {
			if state == answering && ctx.Err() == nil {
				return tidy(said.String()[from:]) // it switched itself off
			}
			t.Fatalf("U-Boot did not answer: %v\n%s\n%s", errors.Join(err, ctx.Err()), said.String(), complaints.String())
		}
	}
}

// tidy drops carriage returns and the prompt.
func tidy(s string) string {
	s = strings.ReplaceAll(s, "\r", "")
	s, _, _ = strings.Cut(s, "\n=> ")
	return strings.TrimSpace(s)
}
