package fit

import "github.com/firmseal/firmseal/internal/image"

// VerifyHelp implements image.Describer.
func (Format) VerifyHelp() []image.OptionHelp {
	return image.DescribeOptions(VerifyOptions{}, targetTexts())
}

func targetTexts() map[string]string {
	return map[string]string{
		"configuration":       "the configuration that the device boots; the FIT's default if left out",
		"required_mode":       "all (U-Boot's default: each required key must have signed) or any",
		"pss":                 "the build has RSASSA-PSS; follows from the version if left out",
		"ecdsa":               "the build has ECDSA_VERIFY; follows from the version if left out",
		"dm_verity":           "whether the target's U-Boot signs dm-verity nodes (2026.10 and later); must be said where an image has one",
		"algos":               "the algo property of each key node, by key name",
		"trusts_hashed_nodes": "the build lacks the fix of CVE-2026-46728 and believes the image's own list of what is signed",
		"max_size":            "FIT_SIGNATURE_MAX_SIZE in bytes; 256 MiB if left out",
	}
}
