package fit

import (
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
)

var _ image.Describer = Format{}

// Help implements image.Describer.
func (Format) Help() image.FormatHelp {
	return image.FormatHelp{
		Name:    name,
		Summary: "U-Boot's FIT: each configuration is signed with the images that it names; the device holds the key in its control device tree",
		// RSA before ECDSA: U-Boot before 2025.01 seldom has ECDSA_VERIFY.
		KeyTypes: []alg.KeyType{alg.RSA3072, alg.RSA4096, alg.RSA2048, alg.P256, alg.P384},
		Options:  image.DescribeOptions(PlanOptions{}, optionTexts()),
		Trust:    image.DescribeOptions(exportOptions{}, optionTexts()),
	}
}

func optionTexts() map[string]string {
	return map[string]string{
		"configurations": "configurations to sign; all if left out",
		"key_name_hint":  "name of the key in the FIT and on the device, instead of the key's own; for one key",
		"padding":        "pkcs-1.5 (the default) or pss; RSA keys",
		"hashes":         "fill (the default): add a strong hash to an image that has none, and refuse a wrong one; keep: refuse both; recompute: correct wrong ones too",
		"hash":           "hash of added nodes: sha256 (the default), sha384 or sha512",
		"replace":        "remove existing signatures of the configurations",
		"append":         "fill a prepared signature node beside signatures that stay valid",
		"timestamp":      "time of the signature, seconds since 1970; none if left out, so that the output depends on the input only",
		"dm_verity":      "whether the target's U-Boot signs dm-verity nodes (2026.10 and later); must be said where an image has one",
		"required_mode":  "all (U-Boot's default: each required key must have signed) or any",
		"allow_unsigned": "leave 'required' out: the device then boots unsigned images too; only for a device class that is moving to signatures",
	}
}
