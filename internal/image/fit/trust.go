package fit

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/binary"
	"fmt"
	"math/big"
	"strings"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/fit/fdt"
	"github.com/firmseal/firmseal/internal/problem"
)

// TrustOptions say how a device is to trust keys.
type TrustOptions struct {
	// KeyNameHint replaces the key's name; for one key only.
	KeyNameHint string `json:"key_name_hint,omitempty"`
	// Padding of an RSA key whose scheme is not given, as in PlanOptions.
	Padding string `json:"padding,omitempty"`
	// RequiredMode is "all" (U-Boot's default) or "any". With "all", an image
	// signed by one of several required keys is refused. Keys that are exported
	// together sign together, so "all" is written for them if nothing is said; it
	// must be said when a key joins others that a device has already.
	RequiredMode string `json:"required_mode,omitempty"`
	// AllowUnsigned leaves required out: the device then runs unsigned images.
	// It exists for a device class that is moving to signatures.
	AllowUnsigned bool `json:"allow_unsigned,omitempty"`
}

// exportOptions are what ExportTrust takes: the same object as Plan's, so that
// a profile needs one only, and what concerns trust.
type exportOptions struct {
	PlanOptions
	RequiredMode  string `json:"required_mode,omitempty"`
	AllowUnsigned bool   `json:"allow_unsigned,omitempty"`
}

// InstallTrust is AddKeys with the options of ExportTrust.
func (Format) InstallTrust(base []byte, pub []image.PublicMaterial, o image.Options) ([]byte, error) {
	opt, err := trustOptions(o)
	if err != nil {
		return nil, err
	}
	return AddKeys(base, pub, opt)
}

func trustOptions(o image.Options) (TrustOptions, error) {
	var all exportOptions
	if err := image.DecodeOptions(name, o, &all); err != nil {
		return TrustOptions{}, err
	}
	return TrustOptions{
		KeyNameHint: all.KeyNameHint, Padding: all.Padding,
		RequiredMode: all.RequiredMode, AllowUnsigned: all.AllowUnsigned,
	}, nil
}

// ExportTrust makes a source fragment to include into the board's control
// device tree, and the same nodes as a device tree of their own.
func (Format) ExportTrust(pub []image.PublicMaterial, o image.Options) ([]image.Artifact, error) {
	opt, err := trustOptions(o)
	if err != nil {
		return nil, err
	}
	t := fdt.New()
	if err := addKeys(t, pub, opt); err != nil {
		return nil, err
	}
	dtb, err := t.Bytes()
	if err != nil {
		return nil, err
	}
	return []image.Artifact{
		{
			Name: "firmseal-keys.dtsi", MediaType: "text/plain", Data: source(t),
			Note: "include it in the board's U-Boot device tree: configs with CONFIG_FIT_SIGNATURE read /signature of the control device tree",
		},
		{
			Name: "firmseal-keys.dtb", MediaType: "application/octet-stream", Data: dtb,
			Note: "the same nodes alone, for fit_check_sign -k",
		},
	}, nil
}

// AddKeys adds the keys to a control device tree and returns the new one. A key
// node of the same name is replaced; other keys stay. The nodes are those that
// mkimage -K -r writes, with required always present, for ECDSA too (mkimage
// before 2025.01 leaves it out there, and U-Boot then accepts anything).
func AddKeys(dtb []byte, pub []image.PublicMaterial, o TrustOptions) ([]byte, error) {
	t, err := fdt.Read(bytes.NewReader(dtb), int64(len(dtb)))
	if err != nil {
		return nil, err
	}
	if err := addKeys(t, pub, o); err != nil {
		return nil, err
	}
	return t.Bytes()
}

func addKeys(t *fdt.Tree, pub []image.PublicMaterial, o TrustOptions) error {
	switch {
	case len(pub) == 0:
		return badOption("no key to trust was named")
	case o.KeyNameHint != "" && len(pub) > 1:
		return badOption("key_name_hint fits one key only, and there are %d", len(pub))
	case o.RequiredMode != "" && o.RequiredMode != "all" && o.RequiredMode != "any":
		return badOption("required_mode is \"all\" or \"any\", not %q", o.RequiredMode)
	}
	by, err := signers(PlanOptions{KeyNameHint: o.KeyNameHint, Padding: o.Padding}, pub)
	if err != nil {
		return err
	}
	sig := t.Root.Child(signatureNode)
	if sig == nil {
		sig = t.Root.Add(signatureNode)
	}
	if o.RequiredMode != "" {
		sig.SetString("required-mode", o.RequiredMode)
	}
	for _, s := range by {
		n := sig.Child("key-" + s.hint)
		if n == nil {
			n = sig.Add("key-" + s.hint)
		}
		n.Props = nil
		if err := keyNode(n, s, !o.AllowUnsigned); err != nil {
			return err
		}
	}
	required := 0
	for _, n := range sig.Nodes {
		if v, ok := n.Str("required"); ok && v == "conf" {
			required++
		}
	}
	_, said := sig.Str("required-mode")
	switch {
	case said || required < 2:
	case required == len(by):
		sig.SetString("required-mode", "all")
	default:
		return problem.New(problem.ImageOptions, "%d keys would be required, and the control device tree does not say how", required).
			Seen("U-Boot's default is all: it refuses every image that has not a signature by each of them").
			WithHint("set required_mode to any, or to all if every image carries all signatures")
	}
	return nil
}

func keyNode(n *fdt.Node, s signer, required bool) error {
	key, _, err := alg.ParseSPKI(s.pub.SPKI)
	if err != nil {
		return err
	}
	if required {
		n.SetString("required", "conf")
	}
	n.SetString(propAlgo, s.algo)
	n.SetString(propHint, s.hint)
	switch k := key.(type) {
	case *rsa.PublicKey:
		bits := k.N.BitLen()
		size := bits / 8
		n.SetU32("rsa,num-bits", uint32(bits))
		// n0-inverse = -n^-1 mod 2^32 and r-squared = (2^bits)^2 mod n, for
		// Montgomery multiplication.
		word := new(big.Int).Lsh(big.NewInt(1), 32)
		inv := new(big.Int).ModInverse(new(big.Int).Mod(k.N, word), word)
		n.SetU32("rsa,n0-inverse", uint32(new(big.Int).Sub(word, inv).Uint64()))
		n.Set("rsa,exponent", binary.BigEndian.AppendUint64(nil, uint64(k.E)))
		n.Set("rsa,modulus", k.N.FillBytes(make([]byte, size)))
		rr := new(big.Int).Lsh(big.NewInt(1), uint(2*bits))
		n.Set("rsa,r-squared", rr.Mod(rr, k.N).FillBytes(make([]byte, size)))
	case *ecdsa.PublicKey:
		curve := map[string]string{"P-256": "prime256v1", "P-384": "secp384r1"}[k.Curve.Params().Name]
		point, err := k.Bytes() // 4 ‖ x ‖ y
		if err != nil {
			return problem.New(problem.KeyMalformed, "the key %q is not a point of its curve", s.pub.Name).Because(err)
		}
		size := (len(point) - 1) / 2
		n.SetString("ecdsa,curve", curve)
		n.Set("ecdsa,x-point", point[1:1+size])
		n.Set("ecdsa,y-point", point[1+size:])
	}
	return nil
}

// source shows /signature as device tree source.
func source(t *fdt.Tree) []byte {
	var b bytes.Buffer
	b.WriteString("// Keys that this device trusts for FIT images, made by firmseal.\n/ {\n")
	var walk func(n *fdt.Node, in string)
	walk = func(n *fdt.Node, in string) {
		fmt.Fprintf(&b, "%s%s {\n", in, n.Name)
		for _, p := range n.Props {
			v, _ := p.Held()
			fmt.Fprintf(&b, "%s\t%s = ", in, p.Name)
			if s, ok := n.Strs(p.Name); ok && len(v) > 1 && printable(strings.Join(s, "")) == strings.Join(s, "") {
				fmt.Fprintf(&b, "\"%s\";\n", strings.Join(s, "\", \""))
				continue
			}
			b.WriteString("<")
			for i := 0; i < len(v); i += 4 {
				if i > 0 {
					b.WriteByte(' ')
				}
				fmt.Fprintf(&b, "0x%08x", binary.BigEndian.Uint32(v[i:]))
			}
			b.WriteString(">;\n")
		}
		for _, c := range n.Nodes {
			walk(c, in+"\t")
		}
		fmt.Fprintf(&b, "%s};\n", in)
	}
	walk(t.Root.Child(signatureNode), "\t")
	b.WriteString("};\n")
	return b.Bytes()
}
