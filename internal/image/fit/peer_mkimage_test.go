package fit_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/fit"
	"github.com/firmseal/firmseal/internal/image/fit/fdt"
	"github.com/firmseal/firmseal/internal/image/fit/fitdemo"
	"github.com/firmseal/firmseal/internal/image/fit/uboottest"
	"github.com/firmseal/firmseal/internal/peertest"
	"github.com/firmseal/firmseal/internal/problem"
)

// workshop is a folder with what mkimage needs: the two images, the key as
// dev.key, dev.pem and dev.crt, and an empty control tree.
func workshop(t testing.TB, k key) string {
	t.Helper()
	dir := t.TempDir()
	der, err := x509.MarshalPKCS8PrivateKey(k.Signer)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: k.name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0),
	}
	crt, err := x509.CreateCertificate(rand.Reader, cert, cert, k.Public(), k.Signer)
	if err != nil {
		t.Fatal(err)
	}
	control := fdt.New()
	control.Root.SetString("model", "control")
	control.Root.Add("signature")
	ctrl, err := control.Layout(8, 1<<14)
	if err != nil {
		t.Fatal(err)
	}
	var dtb bytes.Buffer
	if _, err := ctrl.WriteTo(&dtb, nil); err != nil {
		t.Fatal(err)
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for name, b := range map[string][]byte{
		"kernel": fitdemo.Kernel("7.0.0"), "tree.dtb": fitdemo.Tree(), "control.dtb": dtb.Bytes(),
		k.name + ".key": private, k.name + ".pem": private,
		k.name + ".crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: crt}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// its is a source with one configuration; signature is put into it.
func its(signature string) string {
	return fmt.Sprintf(`/dts-v1/;
/ {
	description = "made by mkimage";
	#address-cells = <1>;
	images {
		kernel-1 {
			description = "prints one line"; data = /incbin/("kernel");
			type = "kernel"; arch = "arm64"; os = "linux"; compression = "none";
			load = <0x40200000>; entry = <0x40200000>;
			hash-1 { algo = "sha256"; };
		};
		fdt-1 {
			description = "tree"; data = /incbin/("tree.dtb");
			type = "flat_dt"; arch = "arm64"; compression = "none";
			hash-1 { algo = "sha256"; };
		};
	};
	configurations {
		default = "conf-1";
		conf-1 { description = "one"; kernel = "kernel-1"; fdt = "fdt-1"; %s };
	};
};
`, signature)
}

func command(t testing.TB, dir, tool string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), tool, args...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(tool), strings.Join(args, " "), err, out)
	}
	return string(out)
}

func mkimage(t testing.TB, dir, source string, args ...string) []byte {
	t.Helper()
	tool := peertest.Tool(t, "mkimage")
	peertest.Tool(t, "dtc") // mkimage runs it
	if err := os.WriteFile(filepath.Join(dir, "image.its"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, dir, tool, append(append([]string{"-f", "image.its"}, args...), "image.fit")...)
	b, err := os.ReadFile(filepath.Join(dir, "image.fit"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestPeerMkimageSigns: what mkimage signs is right for our Verify, and wrong
// when a byte is changed.
func TestPeerMkimageSigns(t *testing.T) {
	for _, c := range []struct {
		algo, padding string
		key           alg.KeyType
	}{
		{"sha256,rsa2048", "", alg.RSA2048},
		{"sha384,rsa3072", "", alg.RSA3072},
		{"sha512,rsa4096", "", alg.RSA4096},
		{"sha256,rsa2048", "pss", alg.RSA2048},
		{"sha256,ecdsa256", "", alg.P256},
	} {
		for _, args := range [][]string{{}, {"-E"}, {"-E", "-B", "0x200"}, {"-E", "-p", "0x3000"}} {
			t.Run(fmt.Sprint(c.algo, c.padding, args), func(t *testing.T) {
				k := shared(t, "dev", c.key)
				dir := workshop(t, k)
				sig := fmt.Sprintf(`signature-1 { algo = "%s"; key-name-hint = "dev"; sign-images = "kernel", "fdt"; %s };`, c.algo,
					map[bool]string{true: `padding = "pss";`}[c.padding == "pss"])
				// The key's folder has a trailing file name that differs by family:
				// mkimage looks for dev.key with RSA, dev.pem with ECDSA.
				b := mkimage(t, dir, its(sig), append([]string{"-k", "."}, args...)...)
				if c.padding == "pss" {
					// Debian's mkimage signs with the longest salt.
					got := problem.Of(verify(t, b, trust(k), image.Profile{}).Refusal())
					if got == nil || got.Code != problem.SigEncoding {
						t.Errorf("the strictest profile: %v", got)
					}
				}
				v := verify(t, b, trust(k), image.Profile{Verifier: "u-boot", Version: "2026.04"})
				if !v.Valid || !v.Accepted {
					t.Fatalf("refused: %v\n%s", v.Refusal(), show(v))
				}
				for _, what := range []string{"prints one line", fitdemo.Line, "linux,dummy-virt"} {
					if v := verify(t, flip(t, b, what), trust(k), image.Profile{}); v.Valid || v.Accepted {
						t.Errorf("accepted with a byte of %q flipped", what)
					}
				}
			})
		}
	}
}

// TestPeerMkimageReads: dumpimage lists what we signed, with our key's hint.
func TestPeerMkimageReads(t *testing.T) {
	k := shared(t, "dev", alg.RSA2048)
	file := filepath.Join(t.TempDir(), "ours.fit")
	if err := os.WriteFile(file, sign(t, fitdemo.FIT("1.2.3"), fit.PlanOptions{}, "", k), 0o600); err != nil {
		t.Fatal(err)
	}
	out := command(t, ".", peertest.Tool(t, "dumpimage"), "-l", file)
	t.Logf("dumpimage says:\n%s", out)
	for _, s := range []string{"Sign algo:    sha256,rsa2048:dev", "Default Configuration: 'conf-1'", "FIT description: Firmseal demo firmware 1.2.3"} {
		if !strings.Contains(out, s) {
			t.Errorf("dumpimage did not say %q", s)
		}
	}
	if strings.Contains(out, "Sign value:   unavailable") {
		t.Error("dumpimage found no signature")
	}
}

// TestPeerMkimageTrust: the key node that we write is the one that mkimage -K -r
// writes, property by property.
func TestPeerMkimageTrust(t *testing.T) {
	for _, kind := range []alg.KeyType{alg.RSA2048, alg.RSA3072, alg.RSA4096} {
		k := shared(t, "dev", kind)
		dir := workshop(t, k)
		before, err := os.ReadFile(filepath.Join(dir, "control.dtb"))
		if err != nil {
			t.Fatal(err)
		}
		mkimage(t, dir, its(fmt.Sprintf(`signature-1 { algo = "sha256,%s"; key-name-hint = "dev"; sign-images = "kernel", "fdt"; };`, kind)),
			"-k", ".", "-K", "control.dtb", "-r")
		theirs, err := os.ReadFile(filepath.Join(dir, "control.dtb"))
		if err != nil {
			t.Fatal(err)
		}
		ours, err := fit.AddKeys(before, []image.PublicMaterial{k.material("")}, fit.TrustOptions{})
		if err != nil {
			t.Fatal(err)
		}
		a, b := keyProps(t, ours), keyProps(t, theirs)
		if len(a) != len(b) {
			t.Errorf("%s: we write %d properties, mkimage %d", kind, len(a), len(b))
		}
		for name, v := range b {
			if !bytes.Equal(a[name], v) {
				t.Errorf("%s: %s is %x, mkimage writes %x", kind, name, a[name], v)
			}
		}
	}
}

func keyProps(t testing.TB, dtb []byte) map[string][]byte {
	t.Helper()
	tree, err := fdt.Read(bytes.NewReader(dtb), int64(len(dtb)))
	if err != nil {
		t.Fatal(err)
	}
	m := map[string][]byte{}
	for _, p := range at(tree.Root, "signature/key-dev").Props {
		m[p.Name], _ = p.Held()
	}
	return m
}

// TestPeerUBootMkimage: FITs that mkimage built, with embedded and external
// data, boot after we signed them.
func TestPeerUBootMkimage(t *testing.T) {
	board := uboottest.Find(t)
	k := shared(t, "dev", alg.RSA2048)
	control, err := fit.AddKeys(board.Tree, []image.PublicMaterial{k.material("")}, fit.TrustOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{}, {"-E"}, {"-E", "-B", "0x1000"}, {"-E", "-p", "0x3000"}} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			b := sign(t, mkimage(t, workshop(t, k), its(""), args...), fit.PlanOptions{}, "", k)
			if v := verify(t, b, trust(k), debian); v.Refusal() != nil {
				t.Fatalf("ours: %v", v.Refusal())
			}
			said := board.Run(t, control, b, "bootm "+uboottest.LoadAddress+"#conf-1")
			t.Logf("U-Boot says:\n%s", said)
			if !strings.Contains(said, "sha256,rsa2048:dev+ OK") || !strings.Contains(said, fitdemo.Line+"7.0.0") {
				t.Error("it did not boot")
			}
		})
	}
}

// TestPeerUBootHashedNodes is CVE-2026-46728: mkimage signs only the images that
// sign-images names, and says so in hashed-nodes, which is not signed. A U-Boot
// with the fix refuses; one without it boots, with a device tree that nobody
// signed.
func TestPeerUBootHashedNodes(t *testing.T) {
	board := uboottest.Find(t)
	k := shared(t, "dev", alg.RSA2048)
	control, err := fit.AddKeys(board.Tree, []image.PublicMaterial{k.material("")}, fit.TrustOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b := mkimage(t, workshop(t, k), its(`signature-1 { algo = "sha256,rsa2048"; key-name-hint = "dev"; sign-images = "kernel"; };`), "-k", ".")
	said := board.Run(t, control, b, "bootm "+uboottest.LoadAddress+"#conf-1")
	t.Logf("U-Boot says:\n%s", said)
	if !strings.Contains(said, "Failed to verify required signature 'key-dev'") {
		t.Error("this U-Boot has not the fix")
	}
	v := verify(t, b, trust(k), debian)
	if got := problem.Of(v.Refusal()); v.Valid || v.Accepted || got.Code != problem.SigCoverage || !strings.Contains(show(v), "node list that the image itself carries") {
		t.Errorf("fixed: valid %v, accepted %v, %v", v.Valid, v.Accepted, got)
	}
	old := debian
	old.Options = options(t, fit.VerifyOptions{TrustsHashedNodes: true})
	if v := verify(t, b, trust(k), old); v.Valid || !v.Accepted {
		t.Errorf("without the fix: valid %v, accepted %v; it boots there", v.Valid, v.Accepted)
	}
	rep, err := fit.New().Inspect(t.Context(), image.Bytes(b))
	if err != nil || !strings.Contains(fmt.Sprint(rep.Findings), "CVE-2026-46728") {
		t.Errorf("Inspect does not tell: %v %v", rep.Findings, err)
	}
}

// TestPeerUBootLegacy shows what a FIT signature cannot prevent: a U-Boot with
// LEGACY_IMAGE_FORMAT boots an unsigned uImage in spite of its required key.
// Our Verify is asked about FIT images and does not call it one.
func TestPeerUBootLegacy(t *testing.T) {
	board := uboottest.Find(t)
	k := shared(t, "dev", alg.RSA2048)
	control, err := fit.AddKeys(board.Tree, []image.PublicMaterial{k.material("")}, fit.TrustOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dir := workshop(t, k)
	command(t, dir, peertest.Tool(t, "mkimage"), "-A", "arm64", "-O", "linux", "-T", "kernel", "-C", "none",
		"-a", "0x40200000", "-e", "0x40200000", "-d", "kernel", "uImage")
	b, err := os.ReadFile(filepath.Join(dir, "uImage"))
	if err != nil {
		t.Fatal(err)
	}
	said := board.Run(t, control, b, "bootm "+uboottest.LoadAddress+" - ${fdtcontroladdr}")
	t.Logf("U-Boot says:\n%s", said)
	if !strings.Contains(said, "Verifying Checksum ... OK") || !strings.Contains(said, fitdemo.Line+"7.0.0") {
		t.Error("this U-Boot does not boot legacy images: the bypass is closed here")
	}
	if err := verify(t, b, trust(k), debian).Refusal(); !problem.Has(err, problem.ImageUnknownFormat) {
		t.Errorf("ours: %v", err)
	}
	if s := fit.New().Detect(bytes.NewReader(b), int64(len(b))); s != image.No {
		t.Errorf("Detect takes a uImage for a FIT: %d", s)
	}
}
