package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/fit/fitdemo"
	"github.com/firmseal/firmseal/internal/problem"
)

type quickstartCmd struct {
	Dir            string `help:"Directory of the demo; run again to sign its next release." default:"firmseal-demo" placeholder:"DIR"`
	Image          string `help:"Sign this file instead of the demo's own bootable image." placeholder:"FILE"`
	NonInteractive bool   `name:"non-interactive" help:"Do not wait for Enter between the steps."`
}

// demo is a quickstart in progress. Each step is a firmseal command that is
// really run, and shown as it can be pasted.
type demo struct {
	a     *app
	c     *quickstartCmd
	out   io.Writer // where people read along; nothing with -o json
	began time.Time
	steps []demoStep
}

type demoStep struct {
	Title   string          `json:"title"`
	Command string          `json:"command"`
	Exit    int             `json:"exit"`
	Result  json.RawMessage `json:"result,omitempty"`
	Seconds float64         `json:"seconds"`
}

type demoFact struct {
	Fact  string `json:"fact"`
	Where string `json:"where"`
}

type demoResult struct {
	Dir     string     `json:"dir"`
	Format  string     `json:"format"`
	Version string     `json:"version"`
	Files   files      `json:"files"`
	Steps   []demoStep `json:"steps"`
	Facts   []demoFact `json:"facts"`
	Next    []string   `json:"next"`
	Seconds float64    `json:"seconds"`
}

const demoBoard = "demo-rev-a"

func (c *quickstartCmd) Run(a *app) error {
	if c.Image != "" {
		f, err := openFile(c.Image)
		if err != nil {
			return err
		}
		f.Close()
	}
	d := &demo{a: a, c: c, out: a.stdout, began: time.Now()}
	if a.g.Output == "json" || a.g.Quiet {
		d.out = io.Discard
	}
	if a.g.Server != "" {
		return problem.New(problem.Usage, "quickstart works on a workspace of its own, not on a server").WithHint("firmseal quickstart")
	}
	if f, ok := a.stdin.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		c.NonInteractive = true // nobody is there to press Enter
	}
	res, err := d.run()
	if err != nil {
		return err
	}
	res.Steps, res.Seconds = d.steps, time.Since(d.began).Seconds()
	return a.show("Quickstart", res, func(w io.Writer) {
		fmt.Fprintf(w, "\nWhere each fact is recorded\n")
		table(w, func(w io.Writer) {
			for _, f := range res.Facts {
				fmt.Fprintf(w, "  %s\t%s\n", f.Fact, f.Where)
			}
		})
		fmt.Fprintf(w, "\nNow with your own (%.1f s so far)\n", res.Seconds)
		for _, n := range res.Next {
			fmt.Fprintf(w, "  %s\n", n)
		}
	})
}

// args joins the parts of a command line without sharing their memory.
func args(head []string, tail ...string) []string { return slices.Concat(head, tail) }

func (d *demo) path(name string) string { return filepath.Join(d.c.Dir, name) }

func (d *demo) run() (demoResult, error) {
	ws := []string{"--workspace", d.path(".firmseal")}
	if err := os.MkdirAll(d.c.Dir, 0o755); err != nil {
		return demoResult{}, problem.New(problem.Usage, "%s cannot be made", d.c.Dir).Seen("%v", err)
	}
	fmt.Fprintf(d.out, "Everything of this demo is in %s; delete it when you are done.\n", d.c.Dir)

	if _, err := os.Stat(d.path(".firmseal/config.yaml")); errors.Is(err, fs.ErrNotExist) {
		// A real workspace keeps the identity and the second place elsewhere.
		if err := d.step("A workspace: a log of its own, its log key, a seal key for each environment", 0,
			"init", d.c.Dir, "--identity", d.path("identity.txt"), "--second-place", d.path("second-place/checkpoint")); err != nil {
			return demoResult{}, err
		}
	}

	sub, err := d.image()
	if err != nil {
		return demoResult{}, err
	}
	img, form := sub.path, sub.format
	profile := sub.name + "-" + form
	key, keyType := profile+"-test", map[string]string{"fit": "rsa2048"}[form]
	if keyType == "" {
		keyType = "p256"
	}
	var known struct {
		Items []client.Key `json:"items"`
	}
	if err := d.query(&known, args(ws, "key", "list")...); err != nil {
		return demoResult{}, err
	}
	if !slices.ContainsFunc(known.Items, func(k client.Key) bool { return k.Name == key }) {
		if err := d.step("A key that can sign test images of this one product, in this one format, and nothing else", 0,
			args(ws, "key", "create", key, "--type", keyType, "--environment", "test", "--product", sub.product, "--format", form)...); err != nil {
			return demoResult{}, err
		}
	}
	policyFile := d.path("policy-" + profile + ".yaml")
	if err := writeOutput(policyFile, func(w io.Writer) error { _, err := io.WriteString(w, demoPolicy(sub, profile, key)); return err }); err != nil {
		return demoResult{}, err
	}
	if err := d.step("The policy: what may be signed, with which key, after which checks ("+policyFile+")", 0,
		args(ws, "policy", "apply", policyFile)...); err != nil {
		return demoResult{}, err
	}

	if err := d.step("Is all well?", 0, args(ws, "status")...); err != nil {
		return demoResult{}, err
	}
	var st client.Status
	if err := d.query(&st, args(ws, "status")...); err != nil {
		return demoResult{}, err
	}
	n := st.Releases + 1
	ver, counter := "1.0."+strconv.Itoa(n), uint64(n)
	sign := []string{}
	if sub.facts.Version != "" {
		// The image has its say; policy refuses a request that contradicts it. The
		// variant lets a second run sign the same version again.
		ver, sign = sub.facts.Version, []string{"--variant", "run-" + strconv.Itoa(n)}
	}
	if sub.facts.SecurityCounter != nil {
		counter = *sub.facts.SecurityCounter
	}
	if d.c.Image == "" {
		if err := writeOutput(img, func(w io.Writer) error { _, err := w.Write(fitdemo.FIT(ver)); return err }); err != nil {
			return demoResult{}, err
		}
	}
	if err := d.step("Sign: logged before the key is used, verified before it leaves", 0,
		args(args(ws, "sign", img, "--profile", profile, "--version", ver, "--security-counter", strconv.FormatUint(counter, 10),
			"--hardware-id", demoBoard, "--build-id", "quickstart-"+strconv.Itoa(n)), sign...)...); err != nil {
		return demoResult{}, err
	}
	var last struct {
		Items []client.Release `json:"items"`
	}
	if err := d.query(&last, args(ws, "release", "list", "--limit", "1")...); err != nil {
		return demoResult{}, err
	}
	request := last.Items[0].Request
	var rq client.Request
	if err := d.query(&rq, args(ws, "request", "show", request)...); err != nil {
		return demoResult{}, err
	}
	fl := filesOf(last.Items[0], "", img)
	if err := d.step("The seal: who asked, what it is, what it may run on, which key signed", 0, "inspect", fl.Seal); err != nil {
		return demoResult{}, err
	}
	if err := d.step("The proof that the log has it", 0, "inspect", fl.Proof); err != nil {
		return demoResult{}, err
	}
	root := d.path("trustroot.json")
	if err := d.step("What a device needs to check all that, offline", 0, args(ws, "trust", "export", "--out", root)...); err != nil {
		return demoResult{}, err
	}
	verify := []string{"--trust-root", root, "--product", sub.product, "--hardware-id", demoBoard, "--seal", fl.Seal, "--proof", fl.Proof}
	if err := d.step("Verify with the trust root alone, as a lab device that takes test releases", 0,
		args([]string{"verify", fl.Image, "--unsafe-test"}, verify...)...); err != nil {
		return demoResult{}, err
	}
	if err := d.step("The same on a device in a customer's hands: a test release is refused", problem.ExitRefused,
		args([]string{"verify", fl.Image}, verify...)...); err != nil {
		return demoResult{}, err
	}
	pub := d.path(key + ".pem")
	var k client.Key
	if err := d.query(&k, args(ws, "key", "show", key)...); err != nil {
		return demoResult{}, err
	}
	if err := writeOutput(pub, func(w io.Writer) error { _, err := w.Write(pemOf(k.SPKI)); return err }); err != nil {
		return demoResult{}, err
	}
	boot := []string{"--format", form, "--key", key + "=" + pub}
	if fl.Signature != "" {
		boot = append(boot, "--signature", fl.Signature)
	}
	if err := d.step("Verify as the bootloader would", 0, args([]string{"verify", fl.Image}, boot...)...); err != nil {
		return demoResult{}, err
	}
	bad := d.path("flipped" + filepath.Ext(fl.Image))
	at, err := d.flip(form, fl.Image, bad)
	if err != nil {
		return demoResult{}, err
	}
	fmt.Fprintf(d.out, "\nOne bit of byte %d is flipped: %s\n", at, bad)
	if err := d.step("The seal says what was changed", problem.ExitRefused,
		args([]string{"verify", bad, "--unsafe-test"}, verify...)...); err != nil {
		return demoResult{}, err
	}
	if err := d.step("So does the bootloader's own check", problem.ExitRefused, args([]string{"verify", bad}, boot...)...); err != nil {
		return demoResult{}, err
	}
	if err := d.step("The log, from its first entry", 0, args(ws, "log", "verify")...); err != nil {
		return demoResult{}, err
	}

	w := " --workspace " + d.path(".firmseal")
	return demoResult{
		Dir: d.c.Dir, Format: form, Version: ver, Files: fl,
		Facts: []demoFact{
			{"who asked, and for what", "firmseal request show " + request + w},
			{"which rule let it pass", "firmseal policy show" + w + "   (policy " + short(rq.Policy) + ")"},
			{"each use of a key, before it happened", "firmseal log list --request " + request + w},
			{"what was released", "firmseal release list" + w},
			{"what a device checks", fl.Seal + ", " + fl.Proof + ", " + root},
		},
		Next: []string{
			"firmseal init",
			"firmseal policy example > firmseal-policy.yaml      (edit it: your product, format and keys)",
			"firmseal key create my-test-key --environment test --product PRODUCT --format FORMAT",
			"firmseal policy apply firmseal-policy.yaml",
			"firmseal sign build/app.bin --profile PROFILE --version 1.0.0 --security-counter 1 --hardware-id BOARD",
		},
	}, nil
}

// subject is the image of the demo.
type subject struct {
	path    string // inside the demo's directory
	format  string
	name    string // begins the names of its profile and key
	product string
	facts   image.Facts // what it says of itself
}

// image gives the image to sign.
func (d *demo) image() (subject, error) {
	if d.c.Image == "" {
		return subject{path: d.path("demo.fit"), format: "fit", name: "demo", product: "demo-board"}, nil
	}
	f, err := openFile(d.c.Image)
	if err != nil {
		return subject{}, err
	}
	defer f.Close()
	src, err := fileSource(f)
	if err != nil {
		return subject{}, err
	}
	base := filepath.Base(d.c.Image)
	// The copy keeps the outputs inside the demo's directory.
	name := "demo-" + slug(strings.TrimSuffix(base, filepath.Ext(base)))
	sub := subject{path: d.path(base), format: "raw", name: name, product: name}
	if err := writeOutput(sub.path, func(w io.Writer) error {
		_, err := io.Copy(w, io.NewSectionReader(src, 0, src.Size()))
		return err
	}); err != nil {
		return subject{}, err
	}
	if form, score := formats().Detect(src); form != nil && score >= image.Likely {
		rep, err := form.Inspect(d.a.ctx, src)
		if err != nil {
			return subject{}, err
		}
		sub.format, sub.facts = form.Name(), rep.Facts
	}
	return sub, nil
}

// slug makes a product's name of a file's.
func slug(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, s)
	return s[:min(len(s), 40)]
}

func demoPolicy(sub subject, profile, key string) string {
	options := ""
	if sub.facts.Signed {
		options = "    options: {replace: true}   # the image has a signature already\n"
	}
	return `apiVersion: firmseal.policy/v1
profiles:
  ` + profile + `:
    product: ` + sub.product + `
    environment: test
    format: ` + sub.format + `
` + options + `    keys:
      image: ` + key + `
    require: [build_id]
    rules:
      - name: own-boards-only
        check: request.hardware_ids.all(h, h.startsWith("demo-"))
        say: this profile signs for demo boards only
        next: name another profile
`
}

// step runs a command, shows it with what it prints, and demands its exit code.
func (d *demo) step(title string, want int, args ...string) error {
	if len(d.steps) > 0 && !d.c.NonInteractive && d.a.g.Output != "json" {
		fmt.Fprint(d.out, "\n[Enter] ")
		if _, err := bufio.NewReader(d.a.stdin).ReadString('\n'); err != nil {
			d.c.NonInteractive = true // nobody is there to press it
		}
	}
	st := demoStep{Title: title, Command: "firmseal " + quoteArgs(args)}
	fmt.Fprintf(d.out, "\n%d. %s\n   $ %s\n", len(d.steps)+1, title, st.Command)
	began := time.Now()
	var out bytes.Buffer
	if d.a.g.Output == "json" {
		st.Exit = Main(append([]string{"-o", "json"}, args...), nil, &out, io.Discard, d.a.hooks)
		if json.Valid(out.Bytes()) {
			st.Result = bytes.Clone(out.Bytes())
		}
	} else {
		st.Exit = Main(args, nil, &out, &out, d.a.hooks)
	}
	st.Seconds = time.Since(began).Seconds()
	d.steps = append(d.steps, st)
	for line := range strings.Lines(out.String()) {
		fmt.Fprintf(d.out, "     %s", line)
	}
	if st.Exit != want {
		return problem.New(problem.Internal, "step %d of the quickstart ended with exit code %d, not %d", len(d.steps), st.Exit, want).
			Seen("%s", strings.TrimSpace(out.String())).WithHint("%s", st.Command)
	}
	return nil
}

// query runs a command that is not part of the show and reads its JSON.
func (d *demo) query(into any, args ...string) error {
	var out bytes.Buffer
	if code := Main(append([]string{"-o", "json"}, args...), nil, &out, io.Discard, d.a.hooks); code != 0 {
		return problem.New(problem.Internal, "the quickstart could not run firmseal %s", quoteArgs(args)).Seen("exit code %d: %s", code, strings.TrimSpace(out.String()))
	}
	if err := json.Unmarshal(out.Bytes(), into); err != nil {
		return fmt.Errorf("reading the result of firmseal %s: %w", quoteArgs(args), err)
	}
	return nil
}

// flip copies a file with one bit turned: in the middle of the demo's kernel, so
// that the bootloader says which hash is wrong, or in the middle of another
// image.
func (d *demo) flip(form, from, to string) (at int, err error) {
	b, err := os.ReadFile(from)
	if err != nil {
		return 0, err
	}
	if len(b) == 0 {
		return 0, problem.New(problem.Usage, "%s is empty", from)
	}
	at = len(b) / 2
	if d.c.Image == "" {
		f, err := formats().ByName(form)
		if err != nil {
			return 0, err
		}
		rep, err := f.Inspect(d.a.ctx, image.Bytes(b))
		if err != nil {
			return 0, err
		}
		if n, ok := descend(rep.Tree, "/", "images", "kernel-1", "data"); ok {
			at = int(n.Off + n.Len/2)
		}
	}
	b[at] ^= 1
	return at, writeOutput(to, func(w io.Writer) error { _, err := w.Write(b); return err })
}

// descend finds a field by the names on the way to it.
func descend(list []image.Node, path ...string) (image.Node, bool) {
	i := slices.IndexFunc(list, func(n image.Node) bool { return n.Name == path[0] })
	switch {
	case i < 0:
		return image.Node{}, false
	case len(path) == 1:
		return list[i], true
	}
	return descend(list[i].Children, path[1:]...)
}

// quoteArgs writes arguments as a shell reads them back.
func quoteArgs(args []string) string {
	out := make([]string, len(args))
	for i, s := range args {
		if s == "" || strings.ContainsAny(s, " \t\n'\"\\$&|;<>()*?[]#~`") {
			s = "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
		}
		out[i] = s
	}
	return strings.Join(out, " ")
}
