package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

type keyCmd struct {
	Create keyCreateCmd `cmd:"" help:"Create a key, bound for ever to its purpose, environment, product and format."`
	List   keyListCmd   `cmd:"" help:"List keys."`
	Show   keyShowCmd   `cmd:"" help:"Show a key and its public half."`
	Retire keyRetireCmd `cmd:"" help:"Retire a key: it signs nothing more."`
	Trust  keyTrustCmd  `cmd:"" help:"Export what a device must hold to accept this key."`
}

// nameRE is what a product may be called; the server has the same rule.
var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

type keyCreateCmd struct {
	Name        string `arg:"" help:"Name; never reused."`
	Type        string `short:"t" help:"p256, p384, ed25519, rsa2048, rsa3072 or rsa4096; default: what suits the format best." enum:",p256,p384,ed25519,rsa2048,rsa3072,rsa4096" default:""`
	Purpose     string `help:"${enum}." enum:"firmware,seal" default:"firmware"`
	Environment string `short:"e" help:"${enum}." enum:"test,production" required:""`
	Product     string `help:"Product (firmware keys)." placeholder:"NAME"`
	Format      string `short:"f" help:"Image format (firmware keys)." placeholder:"FORMAT"`
	Backend     string `help:"Where the private half lives." default:"soft"`
}

func (c *keyCreateCmd) Run(a *app) error {
	if c.Product != "" && !nameRE.MatchString(c.Product) {
		return problem.New(problem.RequestFields, "product %q is not a name", c.Product).
			Seen("letters, digits, '.', '_' and '-', at most 64").WithHint("add --product NAME, as the policy and the devices have it")
	}
	return a.withClient(func(cl *client.Client) error {
		k, err := cl.CreateKey(a.ctx, client.NewKey{
			Name: c.Name, Backend: c.Backend, Type: c.Type, Purpose: c.Purpose,
			Environment: c.Environment, Product: c.Product, Format: c.Format,
		})
		if err != nil {
			return err
		}
		if err := a.showKey(k); err != nil || k.Product == "" || a.g.Output == "json" {
			return err
		}
		a.note("next     name it in a profile of the policy, as keys: {image: %s}", k.Name)
		return nil
	})
}

func (a *app) showKey(k client.Key) error {
	return a.show("Key", k, func(w io.Writer) {
		bound := k.Environment
		if k.Product != "" {
			bound += ", product " + k.Product + ", format " + k.Format
		}
		fmt.Fprintf(w, "key %s: %s %s, %s\n", k.Name, k.Type, k.Purpose, k.State)
		fmt.Fprintf(w, "bound to %s\nid       %s\nheld in  %s\nmade     %s by %s\n", bound, k.ID, k.URI, when(k.Created), k.CreatedBy)
		if k.Retired != 0 {
			fmt.Fprintf(w, "retired  %s by %s\n", when(k.Retired), k.RetiredBy)
		}
	})
}

type keyListCmd struct{}

func (c *keyListCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		ks, err := cl.Keys(a.ctx)
		if err != nil {
			return err
		}
		return a.show("KeyList", client.Page[client.Key]{Items: ks}, func(w io.Writer) {
			table(w, func(w io.Writer) {
				fmt.Fprintln(w, "KEY\tPURPOSE\tTYPE\tENVIRONMENT\tPRODUCT\tFORMAT\tSTATE\tID")
				for _, k := range ks {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.Name, k.Purpose, k.Type, k.Environment, dash(k.Product), dash(k.Format), k.State, short(k.ID))
				}
			})
		})
	})
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

type keyShowCmd struct {
	Name string `arg:"" help:"Key name."`
	PEM  bool   `name:"pem" help:"Print only the public key, as PEM."`
}

func (c *keyShowCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		k, err := cl.Key(a.ctx, c.Name)
		if err != nil {
			return err
		}
		if c.PEM && a.g.Output == "text" {
			return a.show("Key", k, func(w io.Writer) { fmt.Fprintf(w, "%s", pemOf(k.SPKI)) })
		}
		return a.showKey(k)
	})
}

type keyRetireCmd struct {
	Name string `arg:"" help:"Key name."`
	Yes  bool   `help:"Do not ask; it cannot be undone."`
}

func (c *keyRetireCmd) Run(a *app) error {
	if err := a.confirm(c.Yes, c.Name, "retire key "+c.Name+": it will sign nothing more, and this cannot be undone"); err != nil {
		return err
	}
	return a.withClient(func(cl *client.Client) error {
		k, err := cl.RetireKey(a.ctx, c.Name)
		if err != nil {
			return err
		}
		return a.showKey(k)
	})
}

// trustFile is an exported artifact and where it was written.
type trustFile struct {
	client.Artifact
	File string `json:"file"`
}

type keyTrustCmd struct {
	Name    string          `arg:"" help:"Key name."`
	Options json.RawMessage `help:"The format's options, as JSON: firmseal help format NAME." placeholder:"JSON"`
	Dir     string          `help:"Directory to write the files to." default:"." placeholder:"DIR"`
	Into    string          `help:"Add the key to this file of the device instead, in place: for fit, the board's control device tree." placeholder:"FILE"`
}

func (c *keyTrustCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		if c.Into != "" {
			return c.install(a, cl)
		}
		as, err := cl.KeyTrust(a.ctx, c.Name, c.Options)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(c.Dir, 0o755); err != nil {
			return problem.New(problem.Usage, "%s cannot be made", c.Dir).Seen("%v", err).Because(err)
		}
		items := make([]trustFile, len(as))
		outs := make([]output, len(as))
		for i, t := range as {
			// A name from a server stays inside the directory.
			items[i] = trustFile{t, filepath.Join(c.Dir, filepath.Base(t.Name))}
			outs[i] = output{items[i].File, bytesOf(t.Data)}
		}
		if err := writeOutputs(outs...); err != nil {
			return err
		}
		return a.show("TrustArtifactList", client.Page[trustFile]{Items: items}, func(w io.Writer) {
			table(w, func(w io.Writer) {
				for _, t := range items {
					fmt.Fprintf(w, "%s\t%s\n", t.File, t.Note)
				}
			})
		})
	})
}

// maxTrustFile bounds a file that a key is added to, in bytes.
const maxTrustFile = 16 << 20

// install adds the key's public half to a file of the device.
func (c *keyTrustCmd) install(a *app, cl *client.Client) error {
	k, err := cl.Key(a.ctx, c.Name)
	if err != nil {
		return err
	}
	if k.Purpose != "firmware" {
		return problem.New(problem.KeyBinding, "key %s is a %s key", c.Name, k.Purpose).
			Seen("only firmware keys have a form that a bootloader reads").WithHint("firmseal trust export")
	}
	f, err := formats().ByName(k.Format)
	if err != nil {
		return err
	}
	in, ok := f.(image.TrustInstaller)
	if !ok {
		return problem.New(problem.Usage, "format %s has no file on the device that keys are added to", k.Format).
			WithHint("firmseal key trust %s --dir DIR", c.Name)
	}
	base, err := a.readInput(c.Into, maxTrustFile)
	if err != nil {
		return err
	}
	out, err := in.InstallTrust(base, []image.PublicMaterial{{Role: "image", Name: k.Name, SPKI: k.SPKI}}, image.Options(c.Options))
	if err != nil {
		return err
	}
	if err := writeOutput(c.Into, func(w io.Writer) error { _, err := w.Write(out); return err }); err != nil {
		return err
	}
	return a.show("TrustInstalled", map[string]string{"file": c.Into, "key": k.Name, "id": k.ID}, func(w io.Writer) {
		fmt.Fprintf(w, "ok    %s trusts key %s (%s)\n", c.Into, k.Name, k.ID)
	})
}
