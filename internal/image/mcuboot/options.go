package mcuboot

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

// Options are the signing options of a profile, in imgtool's own words and
// with imgtool's meaning. Numbers may be JSON numbers or strings like "0x200".
type Options struct {
	// HeaderSize is what the header is padded to: CONFIG_ROM_START_OFFSET of a
	// Zephyr build. There is no default, because a wrong one moves the vector
	// table and the image never starts. For an image that has its header
	// already it may be left out, and must agree if it is not.
	HeaderSize number `json:"header-size"`
	// PadHeader puts a header of HeaderSize before the payload. Without it the
	// payload begins with that many zero bytes, as Zephyr builds do, or with a
	// header.
	PadHeader bool `json:"pad-header"`

	// SlotSize bounds the image and its trailer; 0 leaves it unchecked.
	SlotSize      number `json:"slot-size"`
	Align         number `json:"align"`     // write size of the flash: 1 (the default), 2, 4, 8, 16, 32
	MaxAlign      number `json:"max-align"` // 8, 16, 32; the default is Align, at least 8
	MaxSectors    number `json:"max-sectors"`
	OverwriteOnly bool   `json:"overwrite-only"`
	Pad           bool   `json:"pad"`        // fill the slot and end it with the boot magic
	Test          bool   `json:"test"`       // pad, and ask for a test swap
	Confirm       bool   `json:"confirm"`    // pad, and mark the image as confirmed
	ErasedVal     string `json:"erased-val"` // "0xff" (the default) or "0"

	Version         string       `json:"version"`          // major[.minor[.revision[+build]]]
	SecurityCounter counter      `json:"security-counter"` // a number, or "auto" from the version
	Dependencies    []dependency `json:"dependencies"`
	CustomTLV       []customTLV  `json:"custom-tlv"`
	VID             string       `json:"vid"` // UUID of the vendor
	CID             string       `json:"cid"` // UUID of the device class

	LoadAddr    number `json:"load-addr"`
	ROMFixed    number `json:"rom-fixed"`
	NonBootable bool   `json:"non-bootable"`

	PublicKeyFormat string `json:"public-key-format"` // "hash" (the default) or "full" for MCUBOOT_HW_KEY
	SHA             string `json:"sha"`               // "auto", "256", "384", "512"
	PadSig          bool   `json:"pad-sig"`           // for MCUboot before 1.5
	Endian          string `json:"endian"`            // "little" only

	// Replace takes the signatures off an image that has some and signs it
	// anew. Everything that was signed besides stays, unless an option says
	// otherwise.
	Replace bool `json:"replace"`
}

// number is a JSON number, or a string with a Go prefix for the base.
type number uint64

func (n *number) UnmarshalJSON(b []byte) error {
	s := string(b)
	if len(b) > 0 && b[0] == '"' {
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
	}
	v, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		return fmt.Errorf("%s is not a number like 512 or \"0x200\"", b)
	}
	*n = number(v)
	return nil
}

// counter is a security counter option.
type counter struct {
	Set, Auto bool
	Value     uint32
}

func (c *counter) UnmarshalJSON(b []byte) error {
	if string(b) == `"auto"` {
		*c = counter{Set: true, Auto: true}
		return nil
	}
	var n number
	if err := n.UnmarshalJSON(b); err != nil {
		return fmt.Errorf("the security counter %s is neither a number nor \"auto\"", b)
	}
	if n > 0xffffffff {
		return fmt.Errorf("the security counter %d does not fit 32 bits", n)
	}
	*c = counter{Set: true, Value: uint32(n)}
	return nil
}

// of gives the counter for a version: "auto" is imgtool's formula, which leaves
// the build number out.
func (c counter) of(v version) uint32 {
	if c.Auto {
		return uint32(v.Major)<<24 + uint32(v.Minor)<<16 + uint32(v.Revision)
	}
	return c.Value
}

// dependency asks for at least a version of another image of the device.
type dependency struct {
	Image   uint8  `json:"image"`
	Version string `json:"version"`
}

// customTLV is a vendor TLV for the protected area. The value is text, or hex
// behind 0x.
type customTLV struct {
	Type  number `json:"type"`
	Value string `json:"value"`
}

func (c customTLV) bytes() ([]byte, error) {
	h, ok := strings.CutPrefix(c.Value, "0x")
	if !ok {
		return []byte(c.Value), nil
	}
	b, err := hex.DecodeString(h)
	if err != nil {
		return nil, optionProblem("custom-tlv", "the value %q of TLV %#04x is not hex", c.Value, uint64(c.Type))
	}
	return b, nil
}

func optionProblem(name, format string, a ...any) *problem.Error {
	return problem.New(problem.ImageOptions, "the option %s of format mcuboot cannot be used", name).Seen(format, a...)
}

// decodeOptions reads options and checks what can be checked without an image.
func decodeOptions(raw image.Options) (*Options, error) {
	var o Options
	if err := image.DecodeOptions(formatName, raw, &o); err != nil {
		return nil, err
	}
	if o.HeaderSize != 0 && (o.HeaderSize < headerLen || o.HeaderSize > maxHeaderSize) {
		return nil, optionProblem("header-size", "%d is not between %d and %d", o.HeaderSize, headerLen, maxHeaderSize)
	}
	if o.PadHeader && o.HeaderSize == 0 {
		return nil, optionProblem("pad-header", "header-size is not set").
			WithHint("set header-size to the offset that the payload is linked for, such as CONFIG_ROM_START_OFFSET=0x200")
	}
	if o.Align == 0 {
		o.Align = 1
	}
	if !slices.Contains([]number{1, 2, 4, 8, 16, 32}, o.Align) {
		return nil, optionProblem("align", "%d is none of 1, 2, 4, 8, 16, 32", o.Align)
	}
	if o.MaxAlign == 0 {
		o.MaxAlign = max(defaultMaxAlign, o.Align)
	}
	if !slices.Contains([]number{8, 16, 32}, o.MaxAlign) {
		return nil, optionProblem("max-align", "%d is none of 8, 16, 32", o.MaxAlign)
	}
	if o.MaxSectors == 0 {
		o.MaxSectors = defaultMaxSectors
	}
	if o.MaxSectors > 1<<16 {
		return nil, optionProblem("max-sectors", "%d sectors are more than %d", o.MaxSectors, 1<<16)
	}
	if o.Test && o.Confirm {
		return nil, optionProblem("confirm", "an image is marked for a test or as confirmed, not both")
	}
	if o.Test || o.Confirm {
		o.Pad = true
	}
	if o.Pad && o.SlotSize == 0 {
		return nil, optionProblem("pad", "slot-size is not set").WithHint("set slot-size to the size of the secondary slot")
	}
	if o.SlotSize > maxSize {
		return nil, optionProblem("slot-size", "%d bytes do not fit 32 bits", o.SlotSize)
	}
	if !slices.Contains([]string{"", "0", "0xff"}, o.ErasedVal) {
		return nil, optionProblem("erased-val", `%q is neither "0" nor "0xff"`, o.ErasedVal)
	}
	if o.LoadAddr > maxSize || o.ROMFixed > maxSize {
		return nil, optionProblem("load-addr", "an address does not fit 32 bits")
	}
	if o.LoadAddr != 0 && o.ROMFixed != 0 {
		return nil, optionProblem("rom-fixed", "an image has a load-addr or a rom-fixed address, not both")
	}
	if !slices.Contains([]string{"", "hash", "full"}, o.PublicKeyFormat) {
		return nil, optionProblem("public-key-format", `%q is neither "hash" nor "full"`, o.PublicKeyFormat)
	}
	if !slices.Contains([]string{"", "auto", "256", "384", "512"}, o.SHA) {
		return nil, optionProblem("sha", `%q is none of "auto", "256", "384", "512"`, o.SHA)
	}
	if o.Endian != "" && o.Endian != "little" {
		return nil, optionProblem("endian", "%q is not supported: headers are written little-endian only", o.Endian)
	}
	if o.Version != "" {
		if _, err := parseVersion(o.Version); err != nil {
			return nil, err
		}
	}
	for _, d := range o.Dependencies {
		if _, err := parseVersion(d.Version); err != nil {
			return nil, err
		}
	}
	seen := map[number]bool{}
	for _, c := range o.CustomTLV {
		// imgtool allows 0xa0 to 0xfffe and then reads the type in 8 bits when it
		// verifies: a low byte below 0xa0 is one of its own types to it.
		if c.Type < tlvVendorMin || c.Type > tlvVendorMax || c.Type&0xff < tlvVendorMin {
			return nil, optionProblem("custom-tlv", "the type %#04x is not a vendor type: 0xa0 to 0xfffe with a low byte from 0xa0", uint64(c.Type))
		}
		if seen[c.Type] {
			return nil, optionProblem("custom-tlv", "the type %#04x is there twice", uint64(c.Type))
		}
		seen[c.Type] = true
		if _, err := c.bytes(); err != nil {
			return nil, err
		}
	}
	for name, u := range map[string]string{"vid": o.VID, "cid": o.CID} {
		if _, err := parseUUID(name, u); u != "" && err != nil {
			return nil, err
		}
	}
	return &o, nil
}

func (o *Options) erased() byte {
	if o.ErasedVal == "0" {
		return 0
	}
	return 0xff
}

// trailerSize is what the bootloader keeps at the end of the slot.
func (o *Options) trailerSize() int64 {
	up := func(n number) number { return (n + o.MaxAlign - 1) / o.MaxAlign * o.MaxAlign }
	if o.OverwriteOnly {
		return int64(o.MaxAlign*2 + up(16))
	}
	return int64(o.MaxSectors*3*o.Align + o.MaxAlign*4 + up(16))
}

// version is the header's own: it has no room for a pre-release.
type version struct {
	Major, Minor uint8
	Revision     uint16
	Build        uint32
}

var versionForm = regexp.MustCompile(`^(0|[1-9]\d*)(?:\.(0|[1-9]\d*)(?:\.(0|[1-9]\d*)(?:\+(0|[1-9]\d*))?)?)?$`)

// parseVersion reads imgtool's form major[.minor[.revision[+build]]], and
// refuses parts that the header's fields would cut off.
func parseVersion(s string) (version, error) {
	m := versionForm.FindStringSubmatch(s)
	if m == nil {
		return version{}, problem.New(problem.ImageOptions, "the version %q does not fit an MCUboot header", s).
			Seen("its form is major.minor.revision+build, all numbers: there is no room for a pre-release").
			WithHint("release as 1.2.3 or 1.2.3+4")
	}
	var part [4]uint64
	for i, bits := range [4]int{8, 8, 16, 32} {
		if m[i+1] == "" {
			continue
		}
		v, err := strconv.ParseUint(m[i+1], 10, bits)
		if err != nil {
			return version{}, problem.New(problem.ImageOptions, "the version %q does not fit an MCUboot header", s).
				Seen("%s has more than %d bits; the fields are 8, 8, 16 and 32 bits wide", m[i+1], bits)
		}
		part[i] = v
	}
	return version{uint8(part[0]), uint8(part[1]), uint16(part[2]), uint32(part[3])}, nil
}

// String leaves the build number out where it is zero, as releases do.
func (v version) String() string {
	s := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Revision)
	if v.Build != 0 {
		s += fmt.Sprintf("+%d", v.Build)
	}
	return s
}

var uuidForm = regexp.MustCompile(`^[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}$`)

// parseUUID takes UUIDs themselves. imgtool also makes version 5 ones from names.
func parseUUID(option, s string) ([]byte, error) {
	if !uuidForm.MatchString(s) {
		return nil, optionProblem(option, "%q is not a UUID", s)
	}
	return hex.DecodeString(strings.ReplaceAll(s, "-", ""))
}

// Stamp implements [image.Stamper]. The release's version must fit the header,
// and its counter the 32 bits of SEC_CNT.
func (Format) Stamp(raw image.Options, ver string, securityCounter uint64) (image.Options, error) {
	o, err := decodeOptions(raw)
	if err != nil {
		return nil, err
	}
	v, err := parseVersion(ver)
	if err != nil {
		return nil, err
	}
	if v.String() != ver {
		return nil, problem.New(problem.ImageOptions, "the version %q is written %s in an MCUboot header", ver, v).
			Seen("the image would not carry the release's own version").WithHint("release as %s", v)
	}
	if securityCounter > 0xffffffff {
		return nil, problem.New(problem.ImageOptions, "the security counter %d does not fit an MCUboot image", securityCounter).
			Seen("SEC_CNT has 32 bits")
	}
	if o.Version != "" {
		if own, err := parseVersion(o.Version); err != nil || own != v {
			return nil, optionProblem("version", "the profile says %s, the release %s", o.Version, ver).
				WithHint("leave version out of the profile: the release sets it")
		}
	}
	if o.SecurityCounter.Set && uint64(o.SecurityCounter.of(v)) != securityCounter {
		return nil, optionProblem("security-counter", "the profile says %d, the release %d", o.SecurityCounter.of(v), securityCounter).
			WithHint("leave security-counter out of the profile: the release sets it")
	}
	m := map[string]json.RawMessage{}
	if len(bytes.TrimSpace(raw)) > 0 {
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, optionProblem("options", "they are not one JSON object").Because(err)
		}
		if m == nil { // the JSON value null
			m = map[string]json.RawMessage{}
		}
	}
	m["version"], _ = json.Marshal(ver) // a string always encodes
	m["security-counter"] = json.RawMessage(strconv.FormatUint(securityCounter, 10))
	return json.Marshal(m)
}
