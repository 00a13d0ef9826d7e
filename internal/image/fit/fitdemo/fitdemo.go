// Package fitdemo makes a FIT that boots: a program of our own that prints one
// line and switches the machine off, and a device tree for it.
//
// It is what quickstart signs when nobody brings an image, and what the tests
// let a real U-Boot boot. It runs on QEMU's arm64 "virt" machine.
package fitdemo

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/firmseal/firmseal/internal/image/fit/fdt"
)

// Line is what the program prints, followed by its version and a line end.
const Line = "Firmseal demo firmware is running, version "

// loadAddress is where U-Boot puts the program: RAM of the virt machine begins
// at 0x40000000.
const loadAddress = 0x40200000

// program is position-independent arm64 code behind the 64-byte header. It
// prints the NUL-terminated text that follows it on the PL011 UART, then asks
// the firmware (PSCI) to switch off.
func program() []uint32 {
	return []uint32{
		0x10000160, //       adr  x0, text          (44 bytes ahead)
		0xd2a12001, //       movz x1, #0x0900, lsl #16   UART data register 0x09000000
		0x38401402, // next: ldrb w2, [x0], #1
		0x34000062, //       cbz  w2, off           (12 bytes ahead)
		0xb9000022, //       str  w2, [x1]
		0x17fffffd, //       b    next              (12 bytes back)
		0x52b08000, // off:  movz w0, #0x8400, lsl #16
		0x72800100, //       movk w0, #0x0008            PSCI SYSTEM_OFF
		0xd4000002, //       hvc  #0
		0x14000000, // stop: b    stop
		0xd503201f, //       nop
		// text:
	}
}

// Kernel is the program as an arm64 Image (the header that Linux documents in
// Documentation/arch/arm64/booting.rst), so that U-Boot boots it as a kernel.
func Kernel(version string) []byte {
	var code []byte
	for _, w := range program() {
		code = binary.LittleEndian.AppendUint32(code, w)
	}
	code = append(code, Line+version+"\r\n\x00"...)
	for len(code)%8 != 0 {
		code = append(code, 0)
	}
	le := binary.LittleEndian
	h := make([]byte, 0, 64+len(code))
	h = le.AppendUint32(h, 0x14000010)           // b over the header
	h = le.AppendUint32(h, 0)                    //
	h = le.AppendUint64(h, 0)                    // text offset
	h = le.AppendUint64(h, uint64(64+len(code))) // size in memory
	h = le.AppendUint64(h, 0xa)                  // little endian, 4K pages, anywhere
	h = append(h, make([]byte, 24)...)           //
	h = le.AppendUint32(h, 0x644d5241)           // "ARM\x64"
	h = le.AppendUint32(h, 0)                    //
	return append(h, code...)
}

// Tree is a device tree that is enough for U-Boot to hand over.
func Tree() []byte {
	t := fdt.New()
	t.Root.SetU32("#address-cells", 2)
	t.Root.SetU32("#size-cells", 2)
	t.Root.SetString("compatible", "linux,dummy-virt")
	t.Root.SetString("model", "firmseal demo")
	m := t.Root.Add("memory@40000000")
	m.SetString("device_type", "memory")
	m.SetU32("reg", 0, 0x40000000, 0, 0x10000000)
	t.Root.Add("chosen")
	b, err := t.Bytes()
	if err != nil {
		panic(fmt.Sprintf("fitdemo: %v", err)) // a constant tree always encodes
	}
	return b
}

// FIT is an unsigned FIT of version with the program, its device tree and the
// configurations named, all alike; "conf-1" when none is named. The first is
// the default. The bytes depend on the arguments only.
func FIT(version string, configurations ...string) []byte {
	if len(configurations) == 0 {
		configurations = []string{"conf-1"}
	}
	t := fdt.New()
	t.Root.SetU32("timestamp", 1767225600) // 2026-01-01
	t.Root.SetString("description", "Firmseal demo firmware "+version)
	t.Root.SetU32("#address-cells", 1)
	images := t.Root.Add("images")
	add := func(name, desc, kind string, data []byte) *fdt.Node {
		n := images.Add(name)
		n.SetString("description", desc)
		n.Set("data", data)
		n.SetString("type", kind)
		n.SetString("arch", "arm64")
		n.SetString("compression", "none")
		sum := sha256.Sum256(data)
		h := n.Add("hash-1")
		h.SetString("algo", "sha256")
		h.Set("value", sum[:])
		return n
	}
	k := add("kernel-1", "prints one line", "kernel", Kernel(version))
	k.SetString("os", "linux")
	k.SetU32("load", loadAddress)
	k.SetU32("entry", loadAddress)
	add("fdt-1", "device tree", "flat_dt", Tree())
	confs := t.Root.Add("configurations")
	confs.SetString("default", configurations[0])
	for _, c := range configurations {
		n := confs.Add(c)
		n.SetString("description", "demo "+c)
		n.SetString("kernel", "kernel-1")
		n.SetString("fdt", "fdt-1")
	}
	b, err := t.Bytes()
	if err != nil {
		panic(fmt.Sprintf("fitdemo: %v", err)) // small data always encode
	}
	return b
}
